# `make` prints this list. Each target sets up what it needs.
PYTHON ?= python3
PORT ?= 5000
BIN := .venv/bin
READY := .venv/.ready
# A file's tests stay in one process, so that they share what its fixtures train.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-nightly coverage check lint format bench bench-gpu grid mlflow clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY)  ## make .venv with everything pinned by constraints.txt

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("specvit needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## made spectra -> trained model -> test score and figure, in minutes on two CPU cores
	$(BIN)/specvit train experiment=demo

check: lint  ## lint, and the fast tests: before every commit
	$(PYTEST) -m "not slow and not nightly"

test: $(READY)  ## the fast and the slow tests: before a branch is merged
	$(PYTEST) -m "not nightly"

test-nightly: $(READY)  ## what takes minutes: full matrices, random kills, SLURM, databases, a browser, the wheel
	$(PYTEST) -m nightly

coverage: $(READY)  ## the tests of `make test`, and the modules of which they run the least
	$(PYTEST) -m "not nightly" --cov --cov-report=
	$(BIN)/coverage report --sort=cover --skip-covered | sed -n '1,32p;$$p'

lint: $(READY)  ## format, style, docstrings, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(READY)  ## put the code in order
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/.bench  ## training speed beside what users run today and beside the floor; start-up and checkpoints: 10 minutes
	$(BIN)/python benchmarks/train_speed.py
	$(BIN)/python benchmarks/startup.py

bench-gpu: .venv/.bench  ## all that only a GPU can show: checks, and speed beside the same
	$(BIN)/python benchmarks/gpu.py

.venv/.bench: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	touch $@

grid: $(READY)  ## after a change of the physics: synthesise the packaged grid of spectra; resumes if stopped
	$(BIN)/python -m tools.spectral_grid

mlflow: $(READY)  ## MLflow UI over the recorded runs, on loopback: http://127.0.0.1:5000; PORT=5001 for another port
	$(BIN)/specvit track sync outputs
	MLFLOW_DISABLE_TELEMETRY=true DO_NOT_TRACK=true $(BIN)/mlflow ui --host 127.0.0.1 --port $(PORT) --backend-store-uri "sqlite:///$$(realpath outputs/..)/mlflow.db"

clean:  ## remove .venv and caches; runs and made spectra stay
	rm -rf .venv .coverage build dist .pytest_cache .ruff_cache .import_linter_cache
