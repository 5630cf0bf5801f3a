# `make demo` and `make test` each work alone on a fresh clone: they make .venv when it is not there.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled when they are imported: most of those of torch and its companions never are.
# They have to be kept then, or each process compiles them anew, ten seconds for those of torch.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint style types tests format clean

help:
	@echo "make demo     train a small network on digits, quantize it, prove it, show what it costs"
	@echo "make test     every check: lint, types, import rules, tests, doctests, examples in the docs"
	@echo "make lint     the checks that run no model"
	@echo "make format   put the sources into the form that lint asks for"
	@echo "make clean    remove .venv, caches and build outputs"

demo: $(VENV)/.installed-demo
	$(BIN)/bitwright demo

# Types take a minute of one core: the tests begin meanwhile.
test: style
	@$(MAKE) --no-print-directory -j2 types tests

lint: style types

style: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed-dev
	$(BIN)/mypy

tests: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quiet -n 2 --dist loadgroup -m "not slow"

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON): $$($(PYTHON) --version); expected Python 3.11 or newer; say PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# setuptools comes first so that the build needs no environment of its own, torch so that a build for the
# processor that is already there, or that pip is set up to prefer, is kept by all that depends on it.
$(VENV)/.installed-torch: constraints.txt | $(BIN)/python
	@echo "Installing torch (large: minutes the first time)"
	@$(PIP) setuptools torch
	@touch $@

$(VENV)/.installed-demo: pyproject.toml $(VENV)/.installed-torch
	@echo "Installing bitwright for the demo"
	@$(PIP) --no-build-isolation -e ".[demo]"
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed-torch
	@echo "Installing bitwright for its tests"
	@$(PIP) --no-build-isolation -e ".[dev]"
	@touch $(VENV)/.installed-demo $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
