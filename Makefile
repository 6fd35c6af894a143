# Microtome. `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BIN = $(VENV)/bin
SOURCES = pyproject.toml constraints.txt tools/environment.py

.DEFAULT_GOAL := help
.PHONY: help dissect test lint types pytest long calibrate bench docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.ready: $(SOURCES)
	@$(PYTHON) tools/environment.py --venv $(VENV) --stamp $@

$(VENV)/.ready-dev: $(SOURCES)
	@$(PYTHON) tools/environment.py --venv $(VENV) --stamp $@ --extra dev

dissect: $(VENV)/.ready ## set up if needed, then dissect ioi on the embedded model, recorded; ARGS="--pairs 4 ..."
	@test -e .microtome/lab.toml || $(BIN)/microtome lab init
	@$(BIN)/microtome dissect ioi $(ARGS)

test: lint types pytest ## lint, types and tests

lint: $(VENV)/.ready-dev ## ruff and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.ready-dev ## mypy
	$(BIN)/mypy

pytest: $(VENV)/.ready-dev ## the tests alone, a process a core; ARGS="-n 0 tests/test_cli_main.py" for one
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist loadfile $(ARGS)

long: $(VENV)/.ready-dev ## what takes longer; appends a dated line to tests/long.jsonl
	$(BIN)/python tools/long.py $(ARGS)

calibrate: $(VENV)/.ready-dev ## every technique on models of known mechanism; ARGS="--quick --check", "--workers 2 --write"
	@$(BIN)/microtome calibrate $(ARGS)

bench: $(VENV)/.ready-dev ## measure beside the peers; see benchmarks/README.md
	$(BIN)/python -m benchmarks $(ARGS)

docs: $(VENV)/.ready-dev ## write the generated pages again
	$(BIN)/python docs/generate.py

clean: ## remove the environment and caches; models and results stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache build src/*.egg-info
