# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help env demo test lint clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

env: $(VENV)/.ready  ## make .venv with everything pinned in constraints.txt

# torch goes first: it decides which build (CPU or CUDA) the rest gets
$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable '.[all]'
	@touch $@

demo: env  ## synthetic data, pack, train HAN and JoMoLD, one table, MLflow (about 5 minutes on 2 CPU cores)
	$(BIN)/python benchmarks/demo.py

test: env  ## all tests
	$(BIN)/python -m pytest

lint: env  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove what make demo wrote
	rm -rf demo
