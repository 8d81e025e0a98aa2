# Penstock's commands; `make` alone lists them. Needs python3 (3.11 or later) and the package
# registry that pip uses, nothing else: .venv is made by the first target that wants it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Other engines than ONNX Runtime, half a gigabyte: where they are missing their tests are skipped,
# and say so. `make install EXTRAS=dev,engines` has them all.
comma := ,
EXTRAS ?= dev$(if $(CI),$(comma)engines)
STAMP := $(VENV)/.installed-$(subst $(comma),+,$(EXTRAS))
# Handed on to the program or to pytest: make run ARGS="--http-port 9000"
ARGS ?=
# Sizes of the slow robustness proofs.
IDLE ?= 10000
COUNT ?= 100000

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make .venv with Penstock (editable) and every development tool

run: $(STAMP) ## Serve the demo model on 127.0.0.1:8000, metrics on 8002
	@exec $(BIN)/penstock serve --demo $(ARGS)

test: $(STAMP) ## Run all tests
	@exec $(BIN)/python -m pytest $(ARGS)

test-fast: $(STAMP) ## Run the tests that take no more than a few seconds each
	@exec $(BIN)/python -m pytest -m "not slow" $(ARGS)

check: $(STAMP) ## Lint, types, layers, tidiness; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/tidy
	$(BIN)/python -m pip check

fix: $(STAMP) ## Repair what ruff can repair, and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## Measure the gateway as ratios that hold on any machine (ARGS=--quick: a minute)
	@exec $(BIN)/python -m penstock.loadtest.bench $(ARGS)

table: $(STAMP) ## Penstock beside a real Triton, by NVIDIA's load generator (40 minutes)
	@exec $(BIN)/python -m penstock.loadtest.table $(ARGS)

int8-table: $(STAMP) ## INT8 beside float, accuracy and speed, on this machine's CPU (3 minutes)
	@exec $(BIN)/python deploy/demo/int8_table.py $(ARGS)

engines-table: $(STAMP) ## Other engines beside ONNX Runtime, on this machine's CPU (1 minute)
	@exec $(BIN)/python deploy/demo/engines_table.py $(ARGS)

soak: $(STAMP) ## 10,000 idle connections beside load (IDLE=n: fewer)
	@ulimit -n "$$(ulimit -Hn)"; exec $(BIN)/python -m penstock.loadtest.idle --idle $(IDLE) $(ARGS)

fuzz: $(STAMP) ## 100,000 corrupt requests over HTTP/1.1, and as many over gRPC (COUNT=n: fewer)
	@$(BIN)/python -m penstock.loadtest.corrupt --count $(COUNT) $(ARGS)
	@exec $(BIN)/python -m penstock.loadtest.corrupt_h2 --count $(COUNT) $(ARGS)

clean: ## Remove .venv and everything that was built or cached
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { \
	  echo "there is no '$(PYTHON)'; name a Python 3.11 or later: make PYTHON=/path/to/python3" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Penstock needs Python 3.11 or later and '$(PYTHON)' is $$($(PYTHON) -V 2>&1);" \
	    "name another: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments; on Debian: apt install python3-venv" >&2; \
	  exit 1; }
	@echo "installing into $(VENV) (once; a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

.PHONY: help install run test test-fast check fix
.PHONY: bench table int8-table engines-table soak fuzz clean
