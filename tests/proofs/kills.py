"""Kills `python train.py` at random moments and resumes it: `python tests/proofs/kills.py [--kills 50] [--seed 0]`.

A small run is killed (SIGKILL) in steps, in saves, in deletions of old checkpoints and while it starts, and resumed
after each. Every life must begin at the newest checkpoint that was complete, no older than the one before the last that
was begun. At the end the metrics, timings aside, and the checksums of every array must be those of a run that nothing
interrupted. Exit code 1 where one of that fails. The data, the runs and the compiled programs are in a temporary
directory.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np

REPOSITORY = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from mot_jax.training.checkpoint import Checkpoints  # noqa: E402
from mot_jax.training.metrics import TIMINGS  # noqa: E402
from mot_jax.training.writers import read_metrics  # noqa: E402
from tests.training.conftest import write_dataset  # noqa: E402

EVERY, STEPS_A_KILL = 2, 8
KINDS = {"save": 0.4, "delete": 0.3, "step": 0.2, "start": 0.1}
ITEMS = {"params", "opt", "data", "meta"}
CONFIG = ("Model.dim=16", "Model.num_layers=1", "Model.num_heads=2", "Model.ffn_dim=32", "Data.sequence_length=48")
CONFIG += ("Data.global_batch_size=8", "Optimizer.warmup_steps=4", "Train.log_every=1", "Train.eval_every=0")
CONFIG += ("Train.sample_every=0", f"Train.checkpoint_every={EVERY}", "Train.keep_checkpoints=2")


@dataclasses.dataclass
class Life:
    """One process of the run, and when it started."""

    process: subprocess.Popen
    output: pathlib.Path
    began: float

    @property
    def lives(self) -> bool:
        return self.process.poll() is None


def start(place: pathlib.Path, run: pathlib.Path, steps: int, number: int) -> Life:
    flags = [f"--gin.{binding}" for binding in (*CONFIG, f"Data.path='{place / 'data'}'", f"Train.steps={steps}")]
    output = place / f"{run.name}_{number}.log"
    environment = {
        **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, "train.py", *flags, "--run_dir", str(run), "--resume=auto"]
    with output.open("w") as file:
        process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT)
    return Life(process, output, time.monotonic())


def saved(run: pathlib.Path) -> list[int]:
    """Steps with a directory of their own, oldest first; half-written ones have another name."""
    place = run / "checkpoints"
    return sorted(int(path.name) for path in place.iterdir() if path.name.isdigit()) if place.exists() else []


def is_whole(run: pathlib.Path, step: int) -> bool:
    """Whether nothing of a checkpoint is deleted yet."""
    place = run / "checkpoints" / str(step)
    return {path.name for path in place.iterdir()} >= ITEMS | {"_CHECKPOINT_METADATA"} and all(
        any((place / item).iterdir()) for item in ITEMS
    )


def last_line(run: pathlib.Path) -> int:
    lines = read_metrics(run / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0


def wait(life: Life, until, pause: float = 0.002) -> None:
    while life.lives and not until():
        time.sleep(pause)


def kill_at(life: Life, run: pathlib.Path, kind: str, after: int, rng: np.random.Generator, usual: float) -> None:
    """Kills at a random moment of that kind, once the run is past the step `after`.

    Args:
      usual: seconds from the start of a process to its first step.
    """
    if kind == "start":
        time.sleep(rng.uniform(0, 1.2 * usual))
    else:
        wait(life, lambda: last_line(run) > after)
    if kind == "step":
        time.sleep(rng.uniform(0, 0.1))
    elif kind == "save":
        wait(life, lambda: any((run / "checkpoints").glob("*tmp*")), 0.0002)
        time.sleep(rng.exponential(0.03))
    elif kind == "delete":
        wait(life, lambda: len(saved(run)) > 2, 0.0002)  # the third is complete: the first goes
        oldest = run / "checkpoints" / str((saved(run) or [0])[0])
        wait(life, lambda: not oldest.exists() or not is_whole_or_gone(oldest), 0)
    if life.lives:
        life.process.send_signal(signal.SIGKILL)
    life.process.wait()


def is_whole_or_gone(place: pathlib.Path) -> bool:
    try:
        return is_whole(place.parents[1], int(place.name))
    except FileNotFoundError:
        return False


def found(run: pathlib.Path, known: set[int]) -> str:
    """In what the kill fell, by what it left; `known` are half-deleted steps that earlier ones left."""
    place = run / "checkpoints"
    half = {step for step in saved(run) if not is_whole_or_gone(place / str(step))}
    new = half - known
    known |= half
    if new:
        return "delete"
    return "save" if place.exists() and any(place.glob("*tmp*")) else "elsewhere"


def check_begin(life: Life, newest: int | None) -> str | None:
    """What is wrong with how a life began, if it got that far."""
    text = life.output.read_text()
    if complaint := re.search(r"^(error: .*|Traceback.*|.* is damaged .*)$", text, re.MULTILINE):
        return complaint[1]
    began = re.search(r"^run directory: [^\n]*?(?:, from step (\d+))?$", text, re.MULTILINE)
    at = began and int(began[1] or 0)
    return None if at in (None, newest or 0) else f"began at step {at}, the newest complete checkpoint was of {newest}"


def outcome(run: pathlib.Path) -> tuple[list[dict], dict]:
    """(metrics without timings, what the last checkpoint says of its arrays and data)."""
    lines = [{k: v for k, v in line.items() if k not in TIMINGS} for line in read_metrics(run / "metrics.jsonl")]
    with Checkpoints(run / "checkpoints") as checkpoints:
        meta = checkpoints.meta(checkpoints.steps()[-1])
    return lines, {name: meta[name] for name in ("arrays", "data_checksum", "window")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, steps = np.random.default_rng(args.seed), args.kills * STEPS_A_KILL
    fell, wrong, lost, half = collections.Counter(), [], [], set()
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        place = pathlib.Path(name)
        write_dataset(place / "data")
        print(f"a run of {steps} steps that nothing interrupts", flush=True)
        life = start(place, place / "whole", steps, 0)
        wait(life, lambda: last_line(place / "whole") > 0)
        usual = time.monotonic() - life.began
        if life.process.wait() != 0:
            print(life.output.read_text())
            return 1
        print(f"done after {time.monotonic() - life.began:.0f} s, the first step after {usual:.0f} s", flush=True)

        run, before = place / "killed", None
        for number in range(args.kills):
            kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
            life = start(place, run, steps, number)
            kill_at(life, run, kind, (before or 0) + int(rng.integers(1, 6)), rng, usual)
            if kind != "start":
                usual = time.monotonic() - life.began  # by now the step is compiled, and the machine as busy as it is
            newest, last = (saved(run) or [None])[-1], last_line(run)
            trouble = check_begin(life, before)
            if trouble is None and life.process.returncode != -signal.SIGKILL:
                trouble = f"ended with exit code {life.process.returncode} before it was killed"
            if trouble is None and (newest or 0) < max(before or 0, last - 2 * EVERY):
                trouble = f"step {last} was reached, but the newest checkpoint is of {newest}, before that {before}"
            fell[where := found(run, half)] += 1
            lost.append(max(0, last - (newest or 0)))
            wrong += [] if trouble is None else [trouble]
            told = f"meant for {kind}, fell in {where}, at step {last}, newest checkpoint {newest}"
            print(f"kill {number + 1}/{args.kills}: {told}{f': {trouble}' if trouble else ''}", flush=True)
            before = newest
        life = start(place, run, steps, args.kills)
        if life.process.wait() != 0 or check_begin(life, before):
            wrong.append(check_begin(life, before) or life.output.read_text().strip().splitlines()[-1])
        same = [a == b for a, b in zip(outcome(run), outcome(place / "whole"), strict=True)]
    print(
        f"{args.kills - len(wrong)} of {args.kills} kills survived (by what they left: {fell['save']} in a save, "
        f"{fell['delete']} in a deletion, {fell['elsewhere']} elsewhere); at most {max(lost)} steps lost; metrics "
        f"{'equal' if same[0] else 'DIFFER'}, arrays and data {'equal' if same[1] else 'DIFFER'}"
    )
    return 0 if not wrong and all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
