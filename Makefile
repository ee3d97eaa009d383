# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo    sets up, tokenizes the bundled real pictures, clips and pages, packs them, trains a little,
#                draws captions and captions pictures (out/gallery/sheet.png)
#   make test    sets up, lints, type-checks, runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out
TOKENIZE := --tokenizer sample --color clean
GREEDY := --sampling.temperature 0 --sampling.max-new-ids 48
# Two test processes; each file stays in one of them, those that start a Ray cluster first (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo tokens train-demo emoji-tokens emoji-model test test-all setup setup-dev lint docs clean

demo: tokens train-demo

tokens: setup
	$(BIN)/python jobs/tokenize_pairs.py --input 'samples/pairs/*.tar' --output $(OUT)/tokens/pairs $(TOKENIZE)
	$(BIN)/python jobs/tokenize_videos.py --input 'samples/videos/*.tar' --output $(OUT)/tokens/videos $(TOKENIZE)
	$(BIN)/python jobs/tokenize_obelics.py --input 'samples/documents/*.tar' --output $(OUT)/tokens/documents $(TOKENIZE)
	$(BIN)/seed-shards info $(OUT)/tokens/pairs
	$(BIN)/seed-shards validate $(OUT)/tokens/pairs
	$(BIN)/seed-shards show $(OUT)/tokens/pairs --limit 2
	$(BIN)/seed-shards report $(OUT)/tokens/pairs --output $(OUT)/pairs.html
	$(BIN)/seed-shards report $(OUT)/tokens/documents --output $(OUT)/documents.html
	$(BIN)/seed-shards report $(OUT)/tokens/videos --output $(OUT)/videos.html

train-demo: setup
	$(BIN)/seed-pack build recipes/mixture_demo.yaml --output $(OUT)/packed
	$(BIN)/seed-pack report $(OUT)/packed
	$(BIN)/seed-pack show $(OUT)/packed --row 193 --root recipes
	$(BIN)/python jobs/pretrain.py --config recipes/pretrain_tiny.yaml --data.packed $(OUT)/packed --output $(OUT)/pretrain_tiny
	$(BIN)/python jobs/generate.py --model $(OUT)/pretrain_tiny/model --tokenizer sample --color clean \
		--input samples/emoji/prompts.jsonl --output $(OUT)/answers.jsonl --gallery $(OUT)/gallery $(GREEDY)
	@echo "done; to look at: $(OUT)/pairs.html $(OUT)/packed/report.html $(OUT)/pretrain_tiny/curves.html $(OUT)/gallery/sheet.png"

# After a change of the tokenizer in tokenizer/sample; EMOJI are WebDataset shards of all 3,545 emoji.
EMOJI ?= ../shared/data/emoji/*.tar
emoji-tokens: setup
	$(BIN)/python samples/emoji/make.py --input '$(EMOJI)'

# All figures of the emoji model in docs/seed.md, and its contact sheet.
EMOJI_MODEL := --model $(OUT)/pretrain_tiny_emoji/model
emoji-model: setup
	$(BIN)/seed-pack build recipes/mixture_emoji.yaml --output $(OUT)/packed_emoji
	$(BIN)/python jobs/pretrain.py --config recipes/pretrain_tiny_emoji.yaml --data.packed $(OUT)/packed_emoji \
		--output $(OUT)/pretrain_tiny_emoji
	for part in train held_out; do for what in drawing captioning; do \
		$(BIN)/python jobs/evaluate.py $$what $(EMOJI_MODEL) --tokens samples/tokens_emoji/$$part --limit 183 \
			--where 'not skin_tone' --output $(OUT)/evaluation/$$what-$$part || exit 1; done; done
	$(BIN)/python jobs/generate.py $(EMOJI_MODEL) --tokenizer sample --color clean \
		--input samples/emoji/prompts.jsonl --output $(OUT)/answers_emoji.jsonl --gallery $(OUT)/gallery_emoji $(GREEDY)

test: setup-dev lint
	$(PYTEST) -m "not slow and not gpu"

test-all: setup-dev lint
	$(PYTEST) -m "not gpu"

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup-dev
	$(BIN)/pdoc --docformat google --output-directory site schemas tokenizer pipeline trainer jobs
	@echo "API reference: site/index.html"

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,-e .)
	@touch $@
	@echo "ready: source $(VENV)/bin/activate"

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call install,-e '.[dev]')
	@touch $(VENV)/.installed $@

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SEED Shards needs Python 3.11 or newer; set PYTHON=...")'
	@echo "setting up $(VENV): some 3 GB of packages with a CUDA build of torch, 1 GB without; a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt $(1)
endef

clean:
	rm -rf $(VENV) $(OUT) site
