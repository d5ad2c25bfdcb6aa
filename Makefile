# Every target builds what it needs in .venv, once, and again when pyproject.toml or constraints.txt changes.
#   make demo | test | test-all | check | bench | docs | clean        another interpreter: make PYTHON=python3.12 test

PYTHON ?= python3
WORKERS ?= 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.NOTPARALLEL: # one environment, one pip at a time
.PHONY: help demo test test-all check bench docs clean

help:
	@sed -n '2,2s/^# *//p' Makefile

demo: .venv/demo.stamp
	@$(BIN)/paramsmith demo --force

test: .venv/test.stamp
	$(BIN)/python -m pytest -n $(WORKERS)

# An empty -m takes back the default selection; tests of CUDA skip themselves, with the reason, where there is none.
test-all: .venv/test.stamp
	$(BIN)/python -m pytest -n $(WORKERS) -m ""

check: .venv/test.stamp .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/test.stamp
	$(BIN)/python -m tests.bench

docs: .venv/test.stamp
	$(BIN)/python -m tests.docs

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --clear: an environment whose making was interrupted is made anew. The build backend comes first and is pinned like
# everything else, which is what --no-build-isolation is for.
.venv/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit("paramsmith needs Python 3.11 or newer: make PYTHON=..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv --clear .venv
	$(PIP) install --quiet -c constraints.txt hatchling
	@touch $@

.venv/%.stamp: .venv/venv.stamp pyproject.toml constraints.txt
	@echo 'installing paramsmith[$*] into .venv (once; some minutes)'
	$(PIP) install --quiet -c constraints.txt --no-build-isolation -e '.[$*]'
	@touch $@
