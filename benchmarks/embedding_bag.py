"""Weighted sums of table rows against taking them all: `python benchmarks/embedding_bag.py`.

The arms take turns in one run: `naive` is take and einsum, whose gradient is XLA's scatter-add of T x K rows; `touched
rows` gives the gradient of only the rows that were read. `in order` reads as many bytes as the bag must, one after the
other: the floor of its time, where the table does not fit in a cache. With `--target v5e` (or another TPU) no time is
taken: the compiler's final schedule says how many cycles a row costs, beside the time that the bytes take.
"""

import argparse
import functools
import pathlib
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import report

from kernels_pallas.ahead_of_time import TPU_TOPOLOGIES, compile_for, missing
from kernels_pallas.embedding_bag import embedding_bag, embedding_bag_rows_gradient
from kernels_pallas.embedding_bag.tpu_stream import GROUP
from kernels_pallas.embedding_bag.tpu_table import UNROLL
from kernels_pallas.schedule import PEAKS, dump_schedules, read_schedules

SETTING = (2048, 128, 256, 16384)  # T, K (four heads of 32 rows), D, N
STATIC_SETTING = (8192, 128, 1024, 16384)


def naive(values, rows, weights):
    return jnp.einsum("tkd,tk->td", jnp.take(values, rows, axis=0), weights)


def with_gradients(bag: Callable) -> Callable:
    def run(values, rows, weights, dy):
        y, pull = jax.vjp(lambda values, weights: bag(values, rows, weights), values, weights)
        return y, pull(dy)

    return run


def touched_rows(values, rows, weights, dy):
    y, pull = jax.vjp(lambda weights: embedding_bag(values, rows, weights), weights)
    return y, pull(dy), embedding_bag_rows_gradient(dy, rows, weights, num_rows=values.shape[0])


def timed(tokens: int, slots: int, width: int, num_rows: int, repeats: int) -> list[dict]:
    rng = np.random.default_rng(0)
    values, dy = (jnp.asarray(rng.normal(size=(n, width)), jnp.float32) for n in (num_rows, tokens))
    picked = jnp.asarray(rng.integers(0, num_rows, (tokens, slots)), jnp.int32)
    weights = jnp.asarray(rng.normal(size=(tokens, slots)), jnp.float32)
    as_many = jnp.ones((tokens * slots, width), jnp.float32)
    arrays = values, picked, weights
    # what is compared -> arm -> (function, arguments)
    compared = {
        "forward": {
            "naive": (naive, arrays),
            "bag": (embedding_bag, arrays),
            "in order": (lambda x: jnp.sum(x, axis=0), (as_many,)),
        },
        "forward and backward": {
            "naive": (with_gradients(naive), (*arrays, dy)),
            "bag": (with_gradients(embedding_bag), (*arrays, dy)),
            "touched rows": (touched_rows, (*arrays, dy)),
        },
    }
    rows = []
    for what, arms in compared.items():
        programs = {arm: jax.jit(function).lower(*of).compile() for arm, (function, of) in arms.items()}
        calls = {arm: functools.partial(programs[arm], *of) for arm, (_, of) in arms.items()}
        seconds = report.alternate(calls, repeats)
        for arm, program in programs.items():
            rows.append(report.row(f"{what} | {arm}", seconds[arm], "naive", seconds["naive"]))
            held = program.memory_analysis().temp_size_in_bytes
            if arm != "in order":
                rows.append(
                    _row(f"{what} | {arm}", "temporary memory", held / 2**20, "MiB", "T x K x D", held / as_many.nbytes)
                )
        if what == "forward":
            rate = as_many.nbytes / np.median(seconds["bag"]) / 1e9
            over = float(np.median(np.asarray(seconds["bag"]) / np.asarray(seconds["in order"])))
            rows.append(_row("forward | bag", "rows read", rate, "GB/s", "in order: time", over))
    return rows


def static(target: str, dump: pathlib.Path, tokens: int, slots: int, width: int, num_rows: int) -> list[dict]:
    """Cycles a row of each kernel, against the cycles in which HBM delivers what it moves."""

    def shape(*sizes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sizes, dtype)

    values, weights, dy = shape(num_rows, width // 128, 128), shape(tokens, slots), shape(tokens, width)
    arrays = values, shape(tokens, slots, dtype=jnp.int32), weights
    gradients = with_gradients(embedding_bag)
    # case -> (function, arguments, the kernel's loop -> rows that a turn of it takes)
    cases = {
        "forward": (embedding_bag, arrays, {1: GROUP}),
        "weights' gradient": (lambda *a: gradients(*a)[1][1], (*arrays, dy), {1: GROUP}),
        "values' gradient": (lambda *a: gradients(*a)[1][0], (*arrays, dy), {1: UNROLL}),
    }
    rows = []
    for name, (function, of, loops) in cases.items():
        compiled, traced = compile_for(target, function, *of)
        (schedule,) = read_schedules(dump, traced)
        _, clock, bandwidth, cores = PEAKS[target]
        cycles = sum(schedule.loops[loop] / taken for loop, taken in loops.items())
        floor = schedule.moved / bandwidth * clock * cores / (tokens * slots)
        # The values' gradient reads dy once, and its table is too small here for what it writes to mean anything.
        against = (None, None) if name == "values' gradient" else ("memory", cycles / floor)
        rows.append(_row(f"{target} {name}", "a row", cycles, "cycles", *against))
        temporary = compiled.memory_analysis().temp_size_in_bytes
        against = temporary / (4 * tokens * slots * width)
        rows.append(_row(f"{target} {name}", "temporary memory", temporary / 2**20, "MiB", "T x K x D", against))
    return rows


def _row(name: str, metric: str, value: float, unit: str, against: str | None, ratio: float | None) -> dict:
    return {"name": name, "metric": metric, "value": value, "unit": unit, "against": against, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--target", nargs="+", choices=TPU_TOPOLOGIES, help="compile for these instead")
    args = parser.parse_args()
    if not args.target:
        setting, rows = SETTING, timed(*SETTING, args.repeats)
    else:
        if reason := missing(args.target[0]):
            parser.error(reason)
        jax.config.update("jax_platforms", "cpu")  # the accelerators are only compiled for
        setting, rows = STATIC_SETTING, []
        with tempfile.TemporaryDirectory() as dump:
            dump_schedules(pathlib.Path(dump))
            for target in args.target:
                rows += static(target, pathlib.Path(dump), *setting)
    shape = " ".join(f"{name}={size}" for name, size in zip("TKDN", setting, strict=True))
    report.show(f"embedding bag, {shape} float32", rows, args.json)


if __name__ == "__main__":
    main()
