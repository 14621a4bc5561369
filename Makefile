# `make demo` and `make test` need only python3 and make; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT ?= runs/demo
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow check format bench clean

# One stamp per set of requirements, so that a second run installs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'surgery needs Python 3.11 or newer')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed  ## train, merge, unmerge and compare on real weights and text; ends with a report
	$(BIN)/surgery compare specs/demo-bert.yaml --out $(DEMO_OUT)/bert
	$(BIN)/surgery compare specs/demo-gpt2.yaml --out $(DEMO_OUT)/gpt2
	@echo 'next: . $(BIN)/activate, then surgery --help'

test: $(VENV)/.installed  ## the test suite: about 3 minutes on two free cores
	$(BIN)/python -m pytest -n 2 -q

test-slow: $(VENV)/.installed  ## studies and installs that take minutes
	$(BIN)/python -m pytest -q -m slow

check: $(VENV)/.installed  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy surgery plugins
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.installed  ## ratios against peft
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/against_peft.py

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
