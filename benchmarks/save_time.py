"""What an asynchronous checkpoint costs a run: `python benchmarks/save_time.py [--json FILE] [--directory DIR]`.

The 94M preset (1.1 GB of parameters and moments) saves in the background. Measured in turn: a step alone, how long a
save holds the steps up, of which its checksums, a step while the save is being written, and the time until it is
complete. The first save is apart, since it compiles. The share of a run that saves every 100 steps is arithmetic: with
the step measured here (one row, the smallest batch there is), and, marked so, with the same hold-up and other steps.
"""

import argparse
import dataclasses
import statistics
import tempfile
import time

import jax
import report
from step_time import packed_batch

from mot_jax.config import Parallel, resolve
from mot_jax.gin_config import load_run
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.checksum import checksums
from mot_jax.training.host_memory import keep_freed_pages
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import init_state
from mot_jax.training.step import make_train_step
from mot_jax.vocabulary import build_vocabulary

EVERY = 100
OTHER_STEPS = (0.1, 0.3, 1.0)  # seconds


def seconds(call) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def measured(rows: int, saves: int, directory: str) -> tuple[dict[str, list[float]], int]:
    """Seconds by what they were spent on, in the order of the saves, and the bytes of a state."""
    run, _ = load_run(["chameleon_94m_dense"])
    image = ("image", 8192, 1024)
    vocabulary = build_vocabulary(2 * 65536 - build_vocabulary(65536, [image]).size, [image])
    model = resolve(run.model, vocabulary.names, vocabulary.size)
    batch = packed_batch(vocabulary, rows, run.data.sequence_length, (0.5, 0.5))
    data = dataclasses.replace(run.data, global_batch_size=rows)
    run = dataclasses.replace(run, model=model, data=data)
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    tx, _ = make_optimizer(run.optimizer, run.train.steps)
    step, states = make_train_step(run, vocabulary, mesh, tx), [init_state(model, tx, mesh, 0)]

    def one():
        states[0], metrics = step(states[0], batch)
        return metrics

    spent = {name: [] for name in ("step", "checksums", "held up", "step beside it", "complete after")}
    jax.block_until_ready(one())
    with Checkpoints(directory, keep=1) as checkpoints:
        for number in range(saves):
            spent["step"].append(seconds(one))
            began = time.perf_counter()
            checkpoints.save(number + 1, states[0], {}, {})
            spent["held up"].append(time.perf_counter() - began)
            spent["step beside it"].append(seconds(one))
            checkpoints.wait()
            spent["complete after"].append(time.perf_counter() - began)
            spent["checksums"].append(seconds(lambda: checksums(states[0])))
    return spent, sum(leaf.nbytes for leaf in jax.tree.leaves(states[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1, help="rows of 4,096 tokens in a batch")
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--directory", help="a disk to write to (default: a temporary directory)")
    parser.add_argument("--json", help="also write the rows here")
    args = parser.parse_args()
    keep_freed_pages()  # as train.py does
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        spent, size = measured(args.rows, args.saves, f"{directory}/checkpoints")

    def row(name: str, value: float, unit: str = "s", against: str = "", ratio: float | None = None) -> dict:
        return {"name": name, "metric": "median", "value": value, "unit": unit, "against": against, "ratio": ratio}

    step = statistics.median(spent["step"])
    held = statistics.median(spent["held up"][1:])
    rows = [row(f"a state: {size / 1e9:.2f} GB; first save, compiling: held up", spent["held up"][0])]
    for name, values in spent.items():
        value = statistics.median(values if name.startswith("step") else values[1:])
        rows.append(row(name, value, against="step", ratio=value / step))
    for other, told in (
        (step, "the step here"),
        *((other, f"not measured: a step of {other} s") for other in OTHER_STEPS),
    ):
        rows.append(
            row(f"share of a run, {told}", 100 * held / (EVERY * other + held), "%", f"{EVERY} steps and a save")
        )
    report.show("asynchronous checkpoints, 94M", rows, args.json)


if __name__ == "__main__":
    main()
