# Every target makes its own environment first: a fresh machine needs Python 3.11, make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint format docs bench chaos docker-test clean

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(STAMP): pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade --constraint .ci/constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint .ci/constraints.txt --editable '.[lint]'
	touch $@

demo: $(STAMP)   ## train on the digits data set with 2 workers, then 1, and compare the bits
	$(BIN)/python examples/01_tabular.py

test: lint       ## lint, types, then every test
	$(BIN)/pytest

lint: $(STAMP)   ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP) ## put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)   ## build the pages into build/docs/; a warning fails
	$(BIN)/sphinx-build -W --keep-going -q -b html docs build/docs

bench: $(STAMP)  ## measure; writes JSON to benchmarks/results/
	$(BIN)/python -m benchmarks

chaos: $(STAMP)  ## break things, for half an hour; prints a table, writes JSON to benchmarks/results/
	$(BIN)/python -m benchmarks.chaos

docker-test: $(STAMP) ## train in containers, kill one, use TLS; the digests must be equal (where an engine runs)
	$(BIN)/python docker/test.py

clean:           ## remove the environment and everything that was made
	rm -rf $(VENV) build dist demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
