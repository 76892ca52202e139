# Every target creates the environment that it needs: Python >= 3.11 and make are enough.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: bench clean demo docs format lint pages paper test test-all

demo: $(VENV)/.dev  ## train on modular addition with SGD and with EGD, print a table, draw a figure
	$(RUN) -m egd_optax.grokking demo

test: lint  ## lint, types and the tests that take seconds
	$(RUN) -m pytest

test-all: lint  ## all tests, the slow ones too
	$(RUN) -m pytest -m "slow or not slow"

bench: $(VENV)/.dev  ## time the polar methods and their peers, write a log and a figure
	$(RUN) examples/benchmarks/polar.py

paper: $(VENV)/.dev  ## run every experiment that has no log yet (hours from nothing), then make the pages
	$(RUN) examples/grokking/paper.py

pages: $(VENV)/.dev  ## make docs/grokking from the logs
	$(RUN) examples/grokking/pages.py

docs: $(VENV)/.docs  ## build the site strictly into site/
	$(VENV)/bin/mkdocs build --strict

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(RUN) -m pip install --quiet --editable ".[docs]"
	touch $@
