# make demo and make test do all set-up themselves; a second call installs nothing.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRA ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# The place of PyTorch's own CPU builds, used where pip's configured sources have none.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
STAMP := $(VENV)/.installed-$(EXTRA)
PYTEST_ARGS ?=
CHAOS_ARGS ?=

.PHONY: setup demo test lint check chaos clean

setup: $(STAMP)

$(STAMP): pyproject.toml cluster/install.sh
	PYTHON="$(PYTHON)" TORCH_CPU_INDEX="$(TORCH_CPU_INDEX)" bash cluster/install.sh "$(VENV)" "$(EXTRA)"
	touch "$@"

demo: setup
	$(BIN)/rlhf-ray run -c configs/demo.yaml

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# Hours of breaking runs on real engines; what is done already is not done again.
chaos: setup
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python tests/chaos/chaos.py $(CHAOS_ARGS)

clean:
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
