# Two commands for a newcomer: `make demo` and `make test`. Python 3.11+ and make are all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the demo needs, and what the tests need on top, in one environment.
BASE := $(VENV)/.installed
FULL := $(VENV)/.installed-all
PEERS := $(VENV)/.installed-benchmarks

.PHONY: demo test lint slow docs clean trainability-quick trainability
.DEFAULT_GOAL := demo

# torch goes first: with the pinned build in place nothing else pulls in a larger one.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fanin needs Python 3.11 or newer; try make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e '.[experiments]'
	touch $@

$(FULL): $(BASE)
	$(PIP) -e '.[test,lint,docs]'
	touch $@

$(PEERS): $(BASE)
	$(PIP) -e '.[benchmarks]'
	touch $@

demo: $(BASE)
	$(BIN)/fanin reproduce --quick

test: $(FULL)
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(FULL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

slow: $(FULL)
	$(BIN)/python -m pytest -m slow

# The core of docs/trainability.md, trained again in less than 15 minutes on two cores, beside what is
# committed; stopped, it goes on. The page is left as it is: `make trainability` writes it.
trainability-quick: $(PEERS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.trainability --cells build/trainability-quick run --set quick --fresh

# Days on two cores: see --dry-run; --backend dask --address tcp://... uses a cluster.
trainability: $(PEERS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.trainability run --set full
	$(BIN)/python -m benchmarks.trainability report

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
