# Two commands on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help env demo test test-fast lint clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

env: $(VENV)/.ready  ## make .venv with everything pinned in constraints.txt

# torch goes first: it decides which build (CPU or CUDA) the rest gets
$(VENV)/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable '.[all]'
	@touch $@

# Short runs of the real commands: no server, no cluster, synthetic data. What each line does: README.md.
DEMO_DATA := data=demo/data tracking.uri=sqlite:///demo/mlflow.db tracking.experiment=demo train.precision=bfloat16
# threads that sleep while they wait: on a machine that others use too, spinning ones slow everyone down tenfold
demo: export OMP_WAIT_POLICY = passive
demo: env  ## synthetic data, pack, train HAN and JoMoLD, one table, MLflow (a few minutes on 2 CPU cores)
	$(BIN)/avvp data synth demo/raw --splits 2000,300,600 --seed 0
	$(BIN)/avvp data pack llp --annotations demo/raw --features demo/raw/feats --out demo/data
	$(BIN)/avvp train han output=demo/han $(DEMO_DATA) train.epochs=6 optim.step_size=4
	$(BIN)/avvp train jomold output=demo/jomold $(DEMO_DATA) train.epochs=12 train.batch_size=32 optim.step_size=4
	$(BIN)/avvp evaluate demo/jomold
	$(BIN)/avvp compare demo/han demo/jomold
	@echo
	@echo "figures   demo/han/figures demo/jomold/figures"
	@echo "compare   $(BIN)/mlflow ui --backend-store-uri sqlite:///demo/mlflow.db   then open http://127.0.0.1:5000"

# The tests of a file run in one process, because they share fixtures. Files run in the order of the folders: xdist would start
# with those of many small tests, and then wait for the long ones at the end. Three processes on two cores, as much of the time
# is waiting.
PYTEST := $(BIN)/python -m pytest -n $(or $(JOBS),3) --dist loadfile --no-loadscope-reorder
test test-fast: export OMP_WAIT_POLICY = passive
test: env  ## all tests (ten minutes on 2 CPU cores)
	$(PYTEST)

test-fast: env  ## unit tests that take no longer than three seconds each (about a minute)
	$(PYTEST) -m "not slow" tests/unit

lint: env  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:  ## remove what make demo wrote
	rm -rf demo
