# Everything that a user or CI does. `make train` and `make test` work on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .peers
# Held out: between 1 and 2 MB, which the evaluation reads in about a minute.
PYTHON_TEXT := --python --heldout 0.025 --heldout-mib 2
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: install train smoke test test-fast test-gpu test-extra lint format docs bench peers clean
.DEFAULT_GOAL := help

help:
	@echo "make train   install, build the data, train a language model, show what it learned"
	@echo "make test    the whole test suite"
	@echo "also: install lint format docs bench peers smoke test-fast test-gpu test-extra"

install: $(INSTALLED)

# torch first and alone: what asks for it later finds it there, and pip does not choose another build.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

train: install
	$(BIN)/bushcraft data build python $(PYTHON_TEXT)
	$(BIN)/bushcraft train

smoke: install
	$(BIN)/bushcraft data build python $(PYTHON_TEXT)
	$(BIN)/bushcraft train smoke

test: install
	$(BIN)/python -m pytest -q -n 2

test-fast: install
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

# On a machine with an NVIDIA GPU, with a torch that was built for it in the environment.
test-gpu: install
	$(BIN)/python -m pytest -q -m gpu tests/gpu

# Against transformers, which lives with the peers: logits and greedy tokens of Llama, Qwen3 and T5Gemma, both ways.
test-extra: install peers
	$(PEERS)/bin/python -m pytest -q tests/extra

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: install
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --strict

# The peers that benchmarks compare with live apart, so that they never touch the project's environment.
peers: $(PEERS)/.installed

$(PEERS)/.installed: benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install -q -c constraints.txt torch
	$(PEERS)/bin/pip install -q --no-deps -r benchmarks/peers.txt
	$(PEERS)/bin/pip install -q --no-deps -e .
	touch $@

bench: install peers
	$(BIN)/python benchmarks/data_loader.py
	$(PEERS)/bin/python benchmarks/train_step.py
	$(BIN)/python benchmarks/kill_resume.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/architectures.py
	$(BIN)/python benchmarks/layout_matrix.py
	$(BIN)/python benchmarks/dry_run.py
	$(PEERS)/bin/python benchmarks/checkpoint.py
	$(BIN)/python benchmarks/checkpoint_kills.py
	$(BIN)/python benchmarks/store.py
