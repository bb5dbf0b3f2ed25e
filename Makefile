# Everything runs in .venv, which is made on first use and only holds what the goal needs.
# Another Python: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# Two goals must not install into the same environment at once.
.NOTPARALLEL:
.PHONY: help demo test test-all lint bench benchmarks clean

help:  ## list the goals
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.demo  ## train a Haiku and a Flax model with Keras; pictures go to demo-output/
	$(RUN) examples/haiku_digits.py
	$(RUN) examples/flax_digits.py

test: $(VENV)/.models  ## run the tests
	$(RUN) -m pytest -n 2 --dist loadgroup

test-all: $(VENV)/.models  ## run the slow tests too: every property of every model
	$(RUN) -m pytest -n 2 --dist loadgroup -m "slow or not slow"

lint: $(VENV)/.lint  ## check style and types
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check
	$(RUN) -m mypy

bench:  ## measure what the layers and their options cost
	@$(MAKE) --no-print-directory VENV=.venv-bench benchmarks

BENCHMARKS := overhead once leaves steps training programs checkpoints scaling report

benchmarks: $(VENV)/.bench
	for name in $(BENCHMARKS); do $(RUN) benchmarks/$$name.py || exit; done

clean:  ## remove the environment and all that was built
	rm -rf $(VENV) .venv-bench demo-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .jax_cache
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps are files inside .venv, so that they go when it goes. One per dependency group:
$(VENV)/.demo $(VENV)/.test $(VENV)/.lint $(VENV)/.bench: $(VENV)/.%: $(VENV)/.pip pyproject.toml
	$(RUN) -m pip install --editable . --group $*
	@touch $@

# Models that other people published, for the parity tests; why without what they ask for, says the file.
$(VENV)/.models: $(VENV)/.test tests/parity/requirements.txt
	$(RUN) -m pip install --no-deps --requirement tests/parity/requirements.txt
	@touch $@

# The pip that Python brings may be too old for --group, which came with 25.1.
$(VENV)/.pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "jaxlayer needs Python 3.11 \
	or newer, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --upgrade 'pip>=25.1'
	@touch $@
