# make setup | quickstart | test | test-slow | lint | types | bench
PYTHON ?= python3
BIN := .venv/bin
CORPUS ?=
OUTPUT ?=

.PHONY: setup quickstart test test-slow lint types bench

setup: .venv/.complete

# All extras, and what the tests and outside checks need.
.venv/.complete: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip 'setuptools>=80'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[all,dev]'
	touch $@

quickstart: setup
	$(BIN)/python quickstart.py $(if $(CORPUS),--corpus '$(CORPUS)') $(if $(OUTPUT),--output '$(OUTPUT)')

# Two processes, a thread each: most of the time goes into starting others and into small trainings.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m 'not slow and not gpu' -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -q -m slow --timeout 1800

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# Figures go to benchmarks/results/; see benchmarks/README.md for what each measures and how long it takes.
bench: setup
	$(BIN)/python benchmarks/partition_quality.py $(if $(CORPUS),--corpus '$(CORPUS)')
