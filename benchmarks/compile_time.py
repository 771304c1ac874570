"""How long it takes until training trains: `python benchmarks/compile_time.py [--json FILE]`.

CPU seconds, which other work hardly changes, to trace and to compile the training step of the default config's MoT
against its depth, layers one after the other and scanned (`Model.scan_layers`). And seconds from the start of
`python train.py` as a process to its first step's line: without a compilation cache, while filling one, and with it
(`JAX_COMPILATION_CACHE_DIR`). The data is prepared before.
"""

import argparse
import dataclasses
import tempfile
import time

import jax
import report
from step_time import packed_batch
from train_process import train_process

from mot_jax.config import Parallel, resolve
from mot_jax.gin_config import load_run
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import abstract_state
from mot_jax.training.step import make_train_step
from mot_jax.vocabulary import build_vocabulary

DEPTHS = {False: (2, 4, 8, 16), True: (2, 4, 8, 16, 32)}  # scanned?


def step_seconds(depth: int, scanned: bool) -> tuple[float, float]:
    """CPU seconds of all threads to trace and lower the step, and to compile it."""
    run, _ = load_run(["digits_mot"])
    vocabulary = build_vocabulary(1024, [("image", 256, 16), ("speech", 200, None)])
    model = dataclasses.replace(run.model, num_layers=depth, scan_layers=scanned)
    run = dataclasses.replace(run, model=resolve(model, vocabulary.names, vocabulary.size))
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    tx, _ = make_optimizer(run.optimizer, run.train.steps)
    batch = packed_batch(vocabulary, run.data.global_batch_size, run.data.sequence_length, (0.5, 0.3, 0.2))
    state, step = abstract_state(run.model, tx, mesh), make_train_step(run, vocabulary, mesh, tx)
    began = time.process_time()
    lowered = step.lower(state, batch)
    between = time.process_time()
    lowered.compile()
    return between - began, time.process_time() - between


def steps() -> list[dict]:
    rows, first = [], None
    step_seconds(1, False)  # what is imported and set up but once
    for scanned, depths in DEPTHS.items():
        for depth in depths:
            traced, compiled = step_seconds(depth, scanned)
            first = first or traced + compiled
            name = f"train step, {depth} layers{', scanned' if scanned else ''}"
            print(f"{name}: {traced:.1f} CPU s to trace, {compiled:.1f} to compile", flush=True)
            against = f"{DEPTHS[False][0]} layers"
            rows.append(report.figure(name, "trace", traced, "CPU s"))
            rows.append(report.figure(name, "compile", compiled, "CPU s"))
            both = traced + compiled
            rows.append(report.figure(name, "trace and compile", both, "CPU s", against, both / first))
    return rows


def processes() -> list[dict]:
    train_process(1, 1)  # prepares the data if nobody has
    with tempfile.TemporaryDirectory() as cache:
        kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        cases = {"no compilation cache": {}, "filling a cache": kept, "with the cache": kept}
        found = {}
        for name, environment in cases.items():
            found[name], _ = train_process(1, 1, environment)
            print(f"train.py, {name}: {found[name]:.1f} s", flush=True)
    cold = found["no compilation cache"]
    return [
        report.figure(
            f"train.py to its first step, {name}", "time", seconds, "s", "no compilation cache", seconds / cold
        )
        for name, seconds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the rows here")
    args = parser.parse_args()
    report.show("time to the first step", processes() + steps(), args.json)


if __name__ == "__main__":
    main()
