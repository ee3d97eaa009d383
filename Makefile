# Two commands do everything on a fresh machine with Python 3.11+:
#   make demo    sets up, tokenizes the bundled real pictures, shows what came out
#   make test    sets up, lints, type-checks, runs the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out

.PHONY: demo test test-all setup setup-dev lint clean

demo: setup
	$(BIN)/python jobs/tokenize_pairs.py --input 'samples/pairs/*.tar' --output $(OUT)/tokens/pairs
	$(BIN)/seed-shards info $(OUT)/tokens/pairs
	$(BIN)/seed-shards show $(OUT)/tokens/pairs --limit 3

test: setup-dev lint
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: setup-dev lint
	$(BIN)/python -m pytest -m "not gpu"

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "SEED Shards needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(OUT)
