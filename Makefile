# make train ARGS="--gin.Train.steps=50 --run_dir runs/a"     every flag of train.py
# make test  ARGS="tests/data -k packing"                     every flag of pytest
# PYTHON=/path/to/python3.12 chooses the interpreter, JAX=0.11.2 the jax (default: the newest it can have),
# VENV=DIR where the environment lives, EXTRAS=compile adds extras of pyproject.toml,
# JAX_PLATFORMS=cpu keeps to the CPU.
PYTHON ?=
JAX ?=
EXTRAS ?=
VENV ?= .venv
ARGS ?=

.PHONY: setup train test lint

setup:
	@PYTHON="$(PYTHON)" JAX="$(JAX)" EXTRAS="$(EXTRAS)" VENV="$(VENV)" sh scripts/setup.sh

train: setup
	@"$(VENV)/bin/python" train.py $(ARGS)

test: setup
	@"$(VENV)/bin/python" -m pytest $(ARGS)

lint: setup
	@"$(VENV)/bin/ruff" check . && "$(VENV)/bin/ruff" format --check .
