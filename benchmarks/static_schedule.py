"""What the compilers of accelerators say of the kernels, with no accelerator: `python benchmarks/static_schedule.py`.

For each TPU: the cycles of a grid step in the final schedule, and the share of the matrix units' peak that they reach
(that the memory traffic allows, where it takes longer than the schedule); the registers that a kernel spills; and the
memory that the compiled call needs beside its arguments and results. For an H100: that it compiles, and that memory,
for the XLA path and for the kernels.
"""

import argparse
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the accelerators are only compiled for

import jax
import jax.numpy as jnp
import report

from kernels_pallas.ahead_of_time import TARGETS, TPU_TOPOLOGIES, compile_for, missing
from kernels_pallas.grouped_matmul import align_rows, grouped_feed_forward, grouped_matmul, grouped_swiglu
from kernels_pallas.schedule import dump_schedules, empty, read_schedules

INNER, OUTER, GROUPS = 1024, 4096, 8


def cases(rows: int, implementation: str | None = None) -> dict[str, tuple[Callable, tuple[jax.ShapeDtypeStruct, ...]]]:
    """Name -> (function, its arguments' shapes), bfloat16."""

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def layout(ids):
        return align_rows(ids, GROUPS)

    ids = shape(rows, dtype=jnp.int32)
    slots = jax.eval_shape(layout, ids).num_slots
    x, y, up, down = shape(slots, INNER), shape(slots, OUTER), shape(GROUPS, INNER, OUTER), shape(GROUPS, OUTER, INNER)

    matmul, swiglu, feed_forward = (
        functools.partial(function, implementation=implementation)
        for function in (grouped_matmul, grouped_swiglu, grouped_feed_forward)
    )

    def gradient(ids, x, weights, dy):
        return jax.vjp(lambda w: matmul(x, w, layout(ids)), weights)[1](dy)

    def layer(ids, x, gate, up, down, dy):
        whole = jax.checkpoint(lambda *a: feed_forward(*a, layout(ids)))
        return jax.vjp(whole, x, gate, up, down)[1](dy)

    return {
        "forward": (lambda ids, x, w: matmul(x, w, layout(ids)), (ids, x, up)),
        "transposed": (lambda ids, y, w: matmul(y, w, layout(ids), transpose_weights=True), (ids, y, up)),
        "swiglu": (lambda ids, x, g, u: swiglu(x, g, u, layout(ids)), (ids, x, up, up)),
        "weight gradient": (gradient, (ids, x, up, y)),
        "feed-forward, rematerialised gradient": (layer, (ids, x, up, up, down, x)),
    }


def rows_for(target: str, dump: pathlib.Path, num_rows: int) -> list[dict]:
    rows = []

    def add(name, metric, value, unit, against=None, ratio=None):
        label = f"{target} {name} (T={num_rows})"
        rows.append({"name": label, "metric": metric, "value": value, "unit": unit, "against": against, "ratio": ratio})

    every = cases(num_rows)
    if target == "h100":  # there the kernels have to be asked for
        every |= {f"{name}, kernels": case for name, case in cases(num_rows, "gpu").items()}
    for name, (function, arguments) in every.items():
        compiled, traced = compile_for(target, function, *arguments)
        if target in TPU_TOPOLOGIES and "rematerialised" not in name:
            (schedule,) = read_schedules(dump, traced)
            by_schedule, by_bytes = schedule.seconds(target)
            bound = min(1.0, by_schedule / by_bytes)
            add(name, "grid step", schedule.cycles, "cycles", "matrix units", schedule.utilisation(target) * bound)
            add(name, "spilled", schedule.spills, "registers")
        add(name, "temporary memory", compiled.memory_analysis().temp_size_in_bytes / 2**20, "MiB")
        empty(dump)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=["v5e", "v5p", "v6e", "h100"])
    parser.add_argument("--rows", type=int, default=8192, help="tokens T (default: 8192)")
    parser.add_argument("--json", help="also write the rows here")
    args = parser.parse_args()
    if reasons := [reason for target in args.target if (reason := missing(target))]:
        parser.error(reasons[0])
    rows = []
    with tempfile.TemporaryDirectory() as dump:
        dump_schedules(pathlib.Path(dump))
        for target in args.target:
            rows += rows_for(target, pathlib.Path(dump), args.rows)
    report.show(f"compiled ahead of time, K={INNER} N={OUTER} G={GROUPS} bfloat16", rows, args.json)


if __name__ == "__main__":
    main()
