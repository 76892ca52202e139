# Every target creates the environment that it needs: Python >= 3.11 and make are enough.
PYTHON ?= python3
export VENV ?= .venv
RUN := $(VENV)/bin/python
# The newest Python that is installed, by version or path, for test-newest.
NEWEST ?= 3.13
# Two processes, whole files: what a file's tests compile, they share. JOBS=0 for one process.
export JOBS ?= 2
PARALLEL := -n $(JOBS) --dist loadfile

.PHONY: bench bench-scale build clean demo docs format help language lint mutations pages paper
.PHONY: smoke test test-all test-lowest test-newest test-wheel

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.dev  ## train on modular addition: SGD, the paper's EGD, AdamW and EGD tuned; a table, a figure
	$(RUN) examples/arena demo

test: lint  ## lint, types and the tests that take seconds
	$(RUN) -m pytest $(PARALLEL)

test-all: lint  ## all tests, the slow ones too
	$(RUN) -m pytest $(PARALLEL) -m "slow or not slow"

mutations: $(VENV)/.dev  ## break the library line by line: each break must fail a test (about ten minutes)
	$(RUN) tests/mutations.py

build: $(VENV)/.release  ## make the sdist, and the wheel from it, in dist/
	rm -rf dist
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*

smoke: build  ## install the wheel without extras elsewhere, run the README's first example
	.ci/smoke $(PYTHON)

test-wheel: build  ## install the wheel elsewhere, run the sdist's tests there
	.ci/installed $(PYTHON) highest

# The oldest Matplotlib uses what pyparsing 3.3 deprecates.
test-lowest: build  ## the same with the lowest versions that are declared
	.ci/installed $(PYTHON) lowest-direct 'pyparsing>=3.1,<3.3'

test-newest: build  ## the same with the newest Python and the newest of everything
	.ci/installed $(NEWEST) highest

bench: $(VENV)/.dev  ## time the polar methods and their peers, alone and in training, write logs and a figure
	PYTHONPATH=examples $(RUN) -m benchmarks.factors
	PYTHONPATH=examples $(RUN) -m benchmarks.training

bench-scale: $(VENV)/.dev  ## time whole models, count work and bytes over devices, write a log (about 20 minutes)
	PYTHONPATH=examples $(RUN) -m benchmarks.scale

paper: $(VENV)/.dev  ## run every experiment that has no log yet (hours from nothing), then make the pages
	$(RUN) examples/grokking paper

language: $(VENV)/.dev  ## train a small language model on the standard library's sources: minutes on two cores
	$(RUN) examples/training/language train

pages: $(VENV)/.dev  ## make the pages of experiments and benchmarks from the logs, guides/models.md from the tests
	$(RUN) examples/grokking pages
	$(RUN) examples/arena pages
	$(RUN) examples/training/language pages
	$(RUN) examples/training/images pages
	PYTHONPATH=examples:examples/training $(RUN) examples/training/when.py
	PYTHONPATH=examples $(RUN) -m benchmarks.tables
	PYTHONPATH=examples $(RUN) -m benchmarks.scale_tables
	$(RUN) docs/hooks/models_page.py

docs: $(VENV)/.docs  ## build the site strictly into site/
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

lint: $(VENV)/.dev  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev  ## let ruff mend what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:  ## remove the environment and what was built
	rm -rf $(VENV) build dist site .hypothesis .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable ".[dev]"
	touch $@

$(VENV)/.docs: $(VENV)/.dev
	$(RUN) -m pip install --quiet --editable ".[docs]"
	touch $@

$(VENV)/.release: $(VENV)/.dev
	$(RUN) -m pip install --quiet --editable ".[release]"
	touch $@
