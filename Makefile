# The two commands of the README are `demo` and `test`; each does all its set-up. `check` is the definition of green.
# Variables: PYTHON (3.11 or newer), PYTEST_ARGS.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT := What is mlxk?
PYTEST_ARGS ?= -n 2 -q

.PHONY: demo test check format lint types layers documented pytest demo-model clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1: /'

demo: $(VENV)/.installed  ## install, and ask the built-in model a question
	$(BIN)/mlxk run demo "$(PROMPT)"

test: $(VENV)/.installed-dev  ## install with development tools, and run every check
	@$(MAKE) --no-print-directory check

check: lint types layers documented pytest  ## format, lint, types, layers, docstrings, tests, contracts

lint:  ## formatting and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:  ## static types
	$(BIN)/mypy -p mlxk --strict

layers:  ## the direction of imports
	$(BIN)/lint-imports

documented:  ## docstrings on every public name
	$(BIN)/interrogate -q domain application adapters entrypoints tools benchmarks

pytest:  ## unit, contract, integration, architecture and end-to-end tests
	$(BIN)/pytest $(PYTEST_ARGS)

format:  ## rewrite the formatting
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo-model:  ## train the built-in model again (under half an hour on two cores)
	$(BIN)/python tools/demo/train.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

# uv resolves and installs in a fraction of pip's time; where it cannot run, pip does the same work.
define install
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e $(1) || $(BIN)/pip install -q -c constraints.txt -e $(1)
endef

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check uv

$(VENV)/.installed: $(BIN)/uv pyproject.toml setup.py constraints.txt
	$(call install,".")
	touch $@

$(VENV)/.installed-dev: $(BIN)/uv pyproject.toml setup.py constraints.txt
	$(call install,".[dev]")
	touch $@ $(VENV)/.installed
