# Everything a person types. `make demo` and `make test` set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Threads are set by each stage itself; libraries that guess on their own only fight over the cores.
export OMP_NUM_THREADS ?= 1

.PHONY: help demo test test-all check format gallery bench bench-ingest bench-train clean setup

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Make the virtual environment (2 to 5 minutes, 2.5 GB)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: run make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): 2 to 5 minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' 2> >(grep -v 'is neither a file nor a directory' >&2)
	@touch $@

demo: $(READY)  ## Run the whole path, from simulated people to a served ECG (9 to 15 minutes on 2 cores)
	@$(BIN)/p2es demo

test: $(READY)  ## Run the tests (under 15 minutes on 2 cores)
	@$(BIN)/pytest -q -n 2 --dist loadfile -m "not slow"

test-all: $(READY)  ## Run the slow tests as well
	@$(BIN)/pytest -q

check: $(READY)  ## Lint, format, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY)  ## Put the code into the house's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

gallery: $(READY)  ## Draw docs/gallery: every rhythm, morphology and population of the simulator
	@$(BIN)/p2es gallery docs/gallery

bench-ingest: $(READY)  ## Ingest and reading against the bare alternatives (10 minutes)
	@for file in benchmarks/bench_ingest.py benchmarks/bench_reading.py benchmarks/bench_memory.py; do $(BIN)/python $$file; done

bench-train: $(READY)  ## Training over Ray Train against torchrun; tracking; scale on paper (15 minutes)
	@for file in benchmarks/bench_train.py benchmarks/bench_tracking.py benchmarks/plan_scale.py; do $(BIN)/python $$file; done

bench: $(READY)  ## Run the benchmarks, each against the bare alternative
	@for file in benchmarks/bench_*.py; do $(BIN)/python $$file; done

clean:  ## Remove what is built, not what is stored
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
