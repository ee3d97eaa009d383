# Two commands do everything on a fresh machine with Python 3.11 or newer:
#   make demo    sets up, tokenizes the bundled real pictures, clips and pages, packs them, trains a little
#   make test    sets up, lints, type-checks, runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := out
TOKENIZE := --tokenizer sample --color clean
# Two test processes; tests with a Ray cluster stay in one of them (tests/conftest.py).
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo tokens train-demo test test-all setup setup-dev lint docs clean

demo: tokens train-demo

tokens: setup
	$(BIN)/python jobs/tokenize_pairs.py --input 'samples/pairs/*.tar' --output $(OUT)/tokens/pairs $(TOKENIZE)
	$(BIN)/python jobs/tokenize_videos.py --input 'samples/videos/*.tar' --output $(OUT)/tokens/videos $(TOKENIZE)
	$(BIN)/python jobs/tokenize_obelics.py --input 'samples/documents/*.tar' --output $(OUT)/tokens/documents $(TOKENIZE)
	$(BIN)/seed-shards info $(OUT)/tokens/pairs
	$(BIN)/seed-shards validate $(OUT)/tokens/pairs
	$(BIN)/seed-shards show $(OUT)/tokens/pairs --limit 2
	$(BIN)/seed-shards report $(OUT)/tokens/pairs --page $(OUT)/pairs.html
	$(BIN)/seed-shards report $(OUT)/tokens/documents --page $(OUT)/documents.html

train-demo: setup
	$(BIN)/seed-pack build recipes/mixture_demo.yaml --output $(OUT)/packed
	$(BIN)/seed-pack show $(OUT)/packed --row 0 --root recipes
	$(BIN)/python jobs/pretrain.py --config recipes/pretrain_tiny.yaml --data.packed $(OUT)/packed

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

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call install,-e '.[dev]')
	@touch $(VENV)/.installed $@

define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SEED Shards needs Python 3.11 or newer; set PYTHON=...")'
	@echo "setting up $(VENV): some 3 GB of packages with a CUDA build of torch, 1 GB without; a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt $(1)
endef

clean:
	rm -rf $(VENV) $(OUT) site
