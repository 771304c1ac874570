"""Trains a model: `python train.py --help`."""

import sys

from mot_jax.cli import run_main
from mot_jax.training.command import main

if __name__ == "__main__":
    sys.exit(run_main(main))
