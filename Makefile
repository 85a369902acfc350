# Two commands set everything up on a fresh machine: `make demo` and `make test`. Both use .venv and touch nothing else.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

export PYTHONHASHSEED ?= 0
export HF_HUB_DISABLE_TELEMETRY ?= 1

.PHONY: help demo test slow check format bench docs sandbox-base clean

help:
	@echo "make demo   the whole recipe, offline, on this machine's CPU"
	@echo "make test   the tests        make slow   the longer sweeps"
	@echo "make check  format, lint, types, import contracts, generated pages"
	@echo "make bench  measurements     make docs   rewrite docs/cli.md"
	@echo "make sandbox-base   train the sandbox's tiny base model anew"

# torch first and alone, so that nothing that depends on it draws in another build.
$(READY): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,deepspeed,qlora,eval,report,dedup,language,trackers,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/zephyrctl demo $(DEMO)

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not slow and not gpu and not live" $(ARGS)

slow: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "slow and not gpu and not live" $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/make_cli_page.py --check

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/python benchmarks/run.py

docs: $(READY)
	$(BIN)/python docs/make_cli_page.py

sandbox-base: $(READY)
	$(BIN)/python -m zephyrctl.sandbox.build_base --out src/zephyrctl/sandbox/base --seed 0

clean:
	rm -rf $(VENV) dist build zephyrctl-demo
