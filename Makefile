# On a fresh machine `make demo` and `make test` do everything, set-up included.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-figures studies study-figures test bench bench-check bench-baseline gpu-check faults faults-short lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv and install the package with its pinned dependencies (again when they change)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed: make PYTHON=python3.12 setup" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing into $(VENV): some minutes the first time.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,cloud,tensorboard]'
	touch $@

demo: setup ## run both stages on generated images, from teacher to report
	$(BIN)/python -m stages.demo

demo-figures: setup ## put the result of the last make demo into README, docs/demo.json and docs/demo.png
	$(BIN)/python tools/demo_figures.py

studies: setup ## run the study files on the demo's images, then study-figures; hours on two cores, continues where it was stopped
	$(BIN)/python tools/run_studies.py; code=$$?; $(BIN)/python tools/study_figures.py && exit $$code

study-figures: setup ## put the tables of make studies into docs/studies.md, and its figure into docs/studies.png
	$(BIN)/python tools/study_figures.py

test: setup ## run the test suite
	$(BIN)/python -m pytest -n 3

bench: setup ## measure the parts of both stages side by side on this machine (OPTIONS='--quick')
	$(BIN)/python -m stages.bench $(OPTIONS)

bench-check: setup ## fail if a ratio has fallen by more than a quarter since tests/benchmark/baseline.json; with nothing else at work
	$(BIN)/python -m pytest -m bench

bench-baseline: setup ## measure those ratios again on an idle machine
	PYTHONPATH=tests/benchmark $(BIN)/python tests/benchmark/make_baseline.py

# Needs no set-up and no network: PYTHON=... on the command line, else .venv if it is there.
GPU_PYTHON = $(if $(filter command environment,$(origin PYTHON))$(if $(wildcard $(BIN)/python),,1),$(PYTHON),$(BIN)/python)
gpu-check: ## on a machine with a CUDA GPU: its tests and open figures in nine minutes (PYTHON=python3.12 OPTIONS='--only tests')
	PYTHONPATH="$(CURDIR):$(CURDIR)/tests$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON) -m gpu $(OPTIONS)

faults: setup ## kill, stop, fill up and damage extractions, trainings and caches: in about an hour (OPTIONS="--faults-seed 1 -k disk")
	$(BIN)/python -m pytest tests/faults -m faults $(OPTIONS)
	$(BIN)/python -m pytest -n 2 -m faults --ignore tests/faults

faults-short: setup ## a few of each of these, and the slowest tests: about nine minutes
	$(BIN)/python -m pytest tests/faults -m faults --faults-short $(OPTIONS)
	$(BIN)/python -m pytest -n 2 -m faults --ignore tests/faults --ignore tests/studies/test_study_kills.py

lint: setup ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove what make demo and the tools leave behind; .venv stays
	rm -rf demo build .pytest_cache .mypy_cache .ruff_cache .hypothesis
