"""`train.py` as a real process on the default config, with nothing but its steps."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

from mot_jax.training.run_directory import METRICS
from mot_jax.training.writers import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
OFF = ("checkpoint_every", "eval_every", "sample_every")


def train_process(steps: int, log_every: int, environment: Mapping[str, str] | None = None) -> tuple[float, list[dict]]:
    """Seconds from the start until the first line of a step is on the terminal, and all lines of metrics.

    Raises:
      RuntimeError: it failed; with what it printed.
    """
    with tempfile.TemporaryDirectory() as directory:
        bindings = [f"--gin.Train.{name}=0" for name in OFF]
        bindings += [f"--gin.Train.steps={steps}", f"--gin.Train.log_every={log_every}"]
        command = [sys.executable, "-u", os.fspath(ROOT / "train.py"), *bindings, "--run_dir", f"{directory}/run"]
        began, first, told = time.perf_counter(), None, []
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.fspath(ROOT), **(environment or {})},
        )
        for line in process.stdout:
            told.append(line)
            if first is None and line.startswith("step "):
                first = time.perf_counter() - began
        if process.wait() or first is None:
            raise RuntimeError(f"train.py ended with {process.returncode}: {''.join(told[-5:])}")
        return first, read_metrics(pathlib.Path(directory, "run", METRICS))
