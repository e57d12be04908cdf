# make demo    set-up and the main job on the built-in data      make test    set-up and all tests
# make check   format, lint, types and unit tests                make help    the rest
SHELL := /bin/bash
PYTHON ?= python3.11
EXTRA ?= cpu
VENV ?= .venv
BIN := $(VENV)/bin
# PyTorch's index of CPU wheels. If it cannot be reached, pip continues without it after TORCH_TIMEOUT seconds.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_TIMEOUT ?= 5
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# On all cores, where pip would compile on one; a few files of packages are templates that are no Python.
COMPILE = $(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null 2>&1 || true
DEMO := runs/shapes
DOCS := build/docs

.PHONY: help setup setup-dev demo test test-long test-families test-videos chaos check format
.PHONY: docs licences
.PHONY: shapes-data shapes-model events-data events-model clean

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

setup: $(VENV)/.vidalign-$(EXTRA) ## create .venv and install vidalign (EXTRA=cpu or EXTRA=gpu)

$(VENV)/bin/python:
	$$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)

$(VENV)/.vidalign-cpu: requirements/torch-cpu.lock requirements/cpu.lock pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV): PyTorch, then the locked packages (2-4 minutes)"
	$(PIP) --extra-index-url $(TORCH_INDEX) --retries 0 --timeout $(TORCH_TIMEOUT) -r requirements/torch-cpu.lock \
	  || $(PIP) -r requirements/torch-cpu.lock
	$(PIP) --no-deps -r requirements/cpu.lock
	$(PIP) --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	$(COMPILE)
	@touch $@

$(VENV)/.vidalign-gpu: requirements/gpu.lock pyproject.toml | $(VENV)/bin/python
	@echo "setting up $(VENV): CUDA builds of PyTorch and vLLM, and the locked packages (several gigabytes)"
	$(PIP) --no-deps -r requirements/gpu.lock
	$(PIP) --no-deps --no-build-isolation --config-settings editable_mode=compat -e .
	$(COMPILE)
	@touch $@

setup-dev: $(VENV)/.vidalign-dev-$(EXTRA)

$(VENV)/.vidalign-dev-$(EXTRA): requirements/dev.lock $(VENV)/.vidalign-$(EXTRA)
	$(PIP) --no-deps -r requirements/dev.lock
	$(COMPILE)
	@touch $@

shapes-data: setup ## make the built-in videos and questions in data/shapes (seconds)
	@test -f data/shapes/train.jsonl || $(BIN)/python -m examples.shapes.make_videos --out data/shapes

demo: setup shapes-data ## set-up and the main job on the built-in data and model: base vs aligned, and a report
	$(BIN)/vidalign align examples/shapes/align.yaml run_dir=$(DEMO)

check: setup-dev ## format, lint, types and unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not heavy" -n auto --maxprocesses 4 --dist loadfile

test: check ## set-up and all tests but those of test-long and test-families
	$(BIN)/python -m pytest -q -m "heavy and not families and not long"

test-long: setup-dev ## more combinations of what `make test` tries
	$(BIN)/python -m pytest -q -m "heavy and long"

test-families: setup-dev ## the tests of every model family, which write docs/models.md (half an hour)
	$(BIN)/python -m pytest -q --record-families tests/test_family_training.py tests/test_family_engines.py tests/test_family_runs.py

test-videos: setup-dev ## both video backends against FFmpeg's command on the whole corpus, and its table in docs/videos.md
	$(BIN)/python -m pytest -q tests/all_videos.py

chaos: setup-dev ## runs with fifty faults, one at a time, and a table of what became of each (an hour)
	$(BIN)/python -m bench.chaos

docs: $(DOCS)/.installed ## the pages of docs/ as a site in build/site, which needs no network to be read
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict --quiet
	@echo "build/site/index.html"

$(DOCS)/.installed: requirements/docs.lock
	$$(command -v $(PYTHON) || command -v python3) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/docs.lock
	@touch $@

licences: setup ## the licences of everything that is installed, copyleft first
	@$(BIN)/python requirements/licences.py requirements/$(EXTRA).lock

format: setup-dev ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

shapes-model: setup ## train the built-in base model from scratch
	$(BIN)/python -m examples.shapes.train_base --out examples/shapes/model

events-data: setup ## make the videos and questions of the events task in data/events (a minute)
	@test -f data/events/train.jsonl || $(BIN)/python -m examples.events.make_videos --out data/events

events-model: setup ## train a base of the events task (SEED=0, 1, 2 …; DEVICE=cuda takes two minutes, a CPU over an hour)
	$(BIN)/python -m examples.events.train_base --out examples/events/model$(if $(filter-out 0,$(SEED)),-$(SEED)) --seed $(or $(SEED),0) --device $(or $(DEVICE),cpu)

clean: ## remove runs and data made by the demo
	rm -rf $(DEMO) data/shapes
