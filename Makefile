# Every target makes what it needs in $(VENV); `make help` lists them.

VENV ?= .venv
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
MODEL ?= +model=mobilenet

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check style bench wheel clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  *\(.*\)/\1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf 'make %-10s %s\n' "$$target" "$$text"; done

demo: $(VENV)/.setup-run  ## quantize the MobileNet that comes with dipo
	$(BIN)/python -m dipo.launch +model=mobilenet +algo=brecq

test: $(VENV)/.setup-test  ## the tests, less those that take minutes
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/.setup-test  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

check: $(VENV)/.setup-dev  ## lint, format and types, as they are
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/.setup-dev  ## lint and format, mended where that is safe
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.setup-run  ## benchmarks/step_cost.py and calibration.py, on MODEL="options"; results are written beside them
	$(BIN)/python benchmarks/step_cost.py $(MODEL) +algo=qdrop precision=w4a4 cluster=inline cluster.threads=1
	$(BIN)/python benchmarks/calibration.py --rate $(MODEL) cluster=inline cluster.threads=1

wheel: $(VENV)/.setup-dev  ## sdist and wheel in dist/
	$(BIN)/python -m build

clean:  ## without the virtual environment, builds and caches; runs in outputs/ stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# New versions mean a new environment: pip would leave behind what is no longer wanted.
$(VENV)/.setup-venv: constraints.txt
	@[ -n "$(PYTHON)" ] || { echo "make: no Python 3.11 or later on PATH, give one: make PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL) --upgrade pip
	@touch $@

$(VENV)/.setup-run: $(VENV)/.setup-venv pyproject.toml
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.setup-test $(VENV)/.setup-dev: $(VENV)/.setup-%: $(VENV)/.setup-run
	$(INSTALL) --group $*
	@touch $@
