# `make run` and `make test` work on a fresh machine: they create .venv themselves.
#
#   make run  [ARGS="--seed 1"]     the demo cascade on the built-in simulator
#   make test [ARGS="-k simulator"] the quick tests and the doctests, on two cores
#   make bench                      all benchmarks, about 25 minutes on 2 quiet cores
#   make bench ARGS=--quick         the same at tiny sizes, 2 minutes: do they run?
#                                   Results: the screen and benchmarks/results/*.json;
#                                   benchmarks/<name>.py --help says what each compares
#   make bench-scale                cost against catalogue, objectives and batch size
#   make bench-serving              the server under load, with versions that change
#   make test-slow, lint, format, clean
#
# PYTHON=/path/to/python chooses the interpreter the environment is made from.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
PYTHON ?=
# 3.11 first: the pinned stack was verified with it.
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.11 python3.12 python3.10 python3.13 python3)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))
# In this order; every one in a process of its own.
BENCHMARKS := training evaluation fused_query index preparation sequences
SOURCES := tfcsmf pipelines tests benchmarks setup.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install run test test-slow bench bench-scale bench-serving lint format clean

help:
	@sed -n '/^$$/q;s/^# \{0,1\}//p' Makefile

install: $(STAMP)

$(STAMP): requirements.txt setup.py
	@set -e; chosen=; \
	for python in $(CANDIDATES); do \
	  if "$$python" -c '$(SUITABLE)' >/dev/null 2>&1; then chosen=$$python; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "tfcsmf needs Python 3.10 to 3.13 with the venv module. Tried: $(CANDIDATES)." >&2; \
	  echo "Install one (Debian, Ubuntu: apt install python3-venv), or run: make PYTHON=/path/to/python ..." >&2; \
	  exit 1; \
	fi; \
	if [ ! -x $(BIN)/python ]; then \
	  echo "Creating $(VENV) with $$chosen"; "$$chosen" -m venv $(VENV); \
	fi
	@# The pip that comes with Python 3.10 searches for minutes; a recent one does not.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

run: $(STAMP)
	$(BIN)/python pipelines/run_cascade.py --output saved_models/demo $(ARGS)

# In the order of the files: by default those of few tests come last, which are the longest.
test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m 'slow and not network' --timeout 1800 $(ARGS)

bench: $(STAMP)
	@set -e; for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(ARGS); done

# Apart from the others: the larger sizes take long, 1e7 items 20 GiB.
bench-scale: $(STAMP)
	$(BIN)/python benchmarks/scale.py $(ARGS)

# Apart too: it loads both cores for minutes.
bench-serving: $(STAMP)
	$(BIN)/python benchmarks/serving.py $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
