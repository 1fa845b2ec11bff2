PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE := tests/node/node_modules/.package-lock.json
LOCK := $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-header --no-annotate
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo run test conformance chromium lint format bench lock clean
.DELETE_ON_ERROR:

help:
	@echo 'make demo         play the whole story on this machine and end'
	@echo 'make run          start the same stack and keep it running'
	@echo 'make test         run every test'
	@echo 'make conformance  run the public MCP conformance suite against the gateway'
	@echo 'make lint         check style, types and import contracts'
	@echo 'make format       fix and format the code with ruff'
	@echo 'make bench        measure Byline beside raw Temporal'
	@echo 'make lock         select the newest versions and write the lock files'
	@echo 'make clean        remove the environment and all development data'

demo: $(VENV)/runtime
	@$(BIN)/python -m examples.demo

run: $(VENV)/runtime
	@$(BIN)/byline dev

test: $(VENV)/dev $(NODE) chromium
	@$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder

conformance: $(VENV)/dev $(NODE)
	@$(BIN)/python -m tests.conformance

# Debian's, as browsers that test tools bring along are fetched from elsewhere and by their own rules.
chromium:
	@command -v chromium > /dev/null || command -v chromium-browser > /dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
			echo 'Installing Chromium, in which tests look at the pages …'; \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -qq --yes --no-install-recommends chromium fonts-dejavu-core > /dev/null; \
		else \
			echo 'The tests look at the pages in Chromium, and there is none here: sudo apt-get install chromium' >&2; exit 1; \
		fi; }

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/dev
	@$(BIN)/python -m benchmarks

lock: $(VENV)/dev
	$(LOCK) --extra build --output-file requirements.lock
	$(LOCK) --extra dev --constraint requirements.lock --output-file requirements-dev.lock
	cd tests/node && PATH="$(CURDIR)/$(BIN):$$PATH" npm install --package-lock-only

clean:
	rm -rf $(VENV) .byline .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis tests/node/node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A changed lock makes a new environment, so that nothing which left the lock stays installed.
$(VENV)/runtime: requirements.lock
	@command -v $(PYTHON) > /dev/null || { \
		echo 'Byline needs Python 3.11 or newer, and there is no $(PYTHON) here: install it, or name yours with make PYTHON=…' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Byline needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) -V): name a newer one with make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "$(PYTHON) comes without its venv module: install it (on Debian and Ubuntu the package python3-venv)" >&2; exit 1; }
	@echo 'Making the environment in $(VENV) …'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) --require-hashes --requirement requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.lock
	@echo 'Adding what tests and checks need …'
	@$(INSTALL) --require-hashes --requirement requirements-dev.lock
	@touch $@

$(NODE): $(VENV)/dev tests/node/package.json tests/node/package-lock.json
	@echo 'Adding the Node clients and servers that tests speak to …'
	@cd tests/node && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --silent --no-audit --no-fund
	@touch $@
