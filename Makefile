# CMRFed: `make demo` shows the whole job on the built-in phantom; `make test` runs what every commit has to pass.
# Needs: make, and Python >= 3.11 with its venv module. Everything else is installed into .venv.

VENV := .venv
BIN := $(VENV)/bin
RUN_DIR ?= runs/demo
WORKERS ?= 2
ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	command -v $$p > /dev/null 2>&1 && $$p -c '$(ENOUGH)' > /dev/null 2>&1 && echo $$p && break; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip compiles what it installs on one core; this does it on all
COMPILE := $(BIN)/python -c 'import compileall, sysconfig; \
	compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)'
# bytecode is kept, whatever the environment says: else each of the tests' many processes compiles everything again
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest \
	-n $(WORKERS) --dist worksteal

.PHONY: help demo test test-fast test-all docs install install-dev lint format clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install ## Run the whole job on the built-in phantom (3 sites) and say where the report lies
	$(BIN)/cmrfed run configs/recipes/demo.yaml --run-dir $(RUN_DIR)
	@test -s $(RUN_DIR)/report.html || { echo "The run ended without $(RUN_DIR)/report.html." >&2; exit 1; }
	@echo "Report: $(CURDIR)/$(RUN_DIR)/report.html (open it in any browser)"

test: lint ## Run what every commit has to pass: format, lint, types, import contracts, fast and slow tests
	$(PYTEST) -m "not nightly"

test-fast: lint ## The same without slow tests: for everyday work
	$(PYTEST) -m "not slow"

test-all: lint ## Everything, with what runs once a night
	$(PYTEST)

lint: install-dev ## Run the checks that need no test: format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install-dev ## Build the documentation as a site in site/, without a network, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Read it: $(BIN)/python -m http.server --directory site"

format: install-dev ## Lay out the code and repair what can be repaired
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed ## Make .venv and install CMRFed with pinned dependencies

install-dev: $(VENV)/.installed-dev ## The same, with the tools that the checks need

clean: ## Remove .venv and caches; runs and cohorts stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 was found (tried python3, python3.11 to python3.13, python)." \
		"Do: install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c '$(ENOUGH)' || { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1)." \
		"Expected: Python >= 3.11. Do: make PYTHON=/path/to/newer/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2> /dev/null || { echo "$(PYTHON) cannot make virtual environments:" \
		"its venv or ensurepip module is missing. Do: install it (Debian, Ubuntu: apt install python3-venv)" >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable .
	$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(wildcard requirements-nnunet.txt) | $(BIN)/pip
	$(PIP) install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(if $(wildcard requirements-nnunet.txt),$(PIP) install --quiet --no-compile --no-deps --requirement requirements-nnunet.txt)
	$(COMPILE)
	@touch $(VENV)/.installed $@
