"""Finds blocks that beat the rules of tpu_tiles.py: `python -m kernels_pallas.tune --target v5e --shape 1024 4096`.

With --target the compiler's static schedule judges, and no accelerator is needed (pip install -e '.[compile]');
without, this machine's TPU does, by timing. What is at least 1% better than the rules goes into tpu_tiles.json, which
the kernels read; commit it.
"""

import argparse
import functools
import json
import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

GAIN = 0.99


def candidates(depth: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(kernel, block) for every block that divides the columns into few equal parts."""

    def parts(size):
        lanes = {math.ceil(size / (128 * count)) for count in (1, 2, 3, 4, 6, 8)}
        return sorted({size} | {128 * each for each in lanes if 128 * each < size})

    for columns in parts(width):
        yield "product", (columns,)
        yield "swiglu", (columns,)
        yield "swiglu_kept", (columns,)
    for columns in parts(depth):
        yield "product_transposed", (columns,)
        yield "sum_transposed", (columns,)
    for inner in parts(depth):
        for outer in parts(width):
            if inner * outer >= min(depth * width, 1 << 20):
                yield "weight_gradient", (inner, outer)


def kernels(block: tuple[int, ...]) -> dict[str, tuple[Callable, str]]:
    """Kernel -> (function of a layout and arrays, which these are), with this block; () is the rules' own.

    The arrays: x [P, K], y and z [P, N], w and v [G, K, N].
    """
    from kernels_pallas.grouped_matmul import tpu_rows, tpu_weights

    product = functools.partial(tpu_rows.product, block=block)
    swiglu = functools.partial(tpu_rows.swiglu, block=block)
    return {
        "product": (lambda layout, x, w: product((x,), (w,), layout, transpose=False), "xw"),
        "product_transposed": (lambda layout, y, w: product((y,), (w,), layout, transpose=True), "yw"),
        "sum_transposed": (lambda layout, y, z, w, v: product((y, z), (w, v), layout, transpose=True), "yzwv"),
        "swiglu": (lambda layout, x, w, v: swiglu(x, w, v, layout, keep=False), "xwv"),
        "swiglu_kept": (lambda layout, x, w, v: swiglu(x, w, v, layout, keep=True), "xwv"),
        "weight_gradient": (lambda layout, x, y: tpu_weights.weight_gradient(x, y, layout, block=block), "xy"),
    }


def judge_by_schedule(target: str, dump: pathlib.Path) -> Callable:
    """(function, shapes) -> seconds by the schedule or by the bytes, whichever is more; None where it does not fit."""
    import jax

    from kernels_pallas.ahead_of_time import compile_for
    from kernels_pallas.schedule import empty, read_schedules

    def seconds(function, shapes):
        try:
            _, traced = compile_for(target, function, *shapes)
        except jax.errors.JaxRuntimeError:  # too large for VMEM
            empty(dump)
            return None
        schedules = read_schedules(dump, traced)
        return max(schedules[0].seconds(target)) if schedules else None

    return seconds


def judge_by_time(function, shapes) -> float | None:
    """Median seconds of twenty calls on this machine's device, rows in random groups; None where it does not fit."""
    import jax
    import numpy as np

    from kernels_pallas.grouped_matmul import align_rows

    layout, *others = shapes
    ids = np.random.default_rng(0).integers(0, layout.num_groups, layout.num_rows).astype(np.int32)
    layout = jax.jit(functools.partial(align_rows, num_groups=layout.num_groups, tile=layout.tile))(ids)
    keys = jax.random.split(jax.random.key(0), len(others))
    arrays = [jax.random.normal(key, s.shape, s.dtype) for key, s in zip(keys, others, strict=True)]
    run = jax.jit(function)
    try:
        jax.block_until_ready(run(layout, *arrays))
    except jax.errors.JaxRuntimeError:
        return None
    taken = []
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(run(layout, *arrays))
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))


def tune(judge: Callable, rows: int, groups: int, depth: int, width: int) -> dict[str, list[int] | None]:
    """Table entries for one shape, bfloat16: each kernel's best block, None where the rules' is as good."""
    import jax
    import jax.numpy as jnp

    from kernels_pallas.grouped_matmul import align_rows
    from kernels_pallas.grouped_matmul.tpu_tiles import table_key

    layout = jax.eval_shape(functools.partial(align_rows, num_groups=groups), jax.ShapeDtypeStruct((rows,), jnp.int32))
    of_x, of_y, of_w = (layout.num_slots, depth), (layout.num_slots, width), (groups, depth, width)
    arrays = {"x": of_x, "y": of_y, "z": of_y, "w": of_w, "v": of_w}

    def judged(kernel, block):
        function, names = kernels(block)[kernel]
        return judge(function, (layout, *(jax.ShapeDtypeStruct(arrays[name], jnp.bfloat16) for name in names)))

    rules, found = {}, {}
    for kernel, block in candidates(depth, width):
        if kernel not in rules:
            rules[kernel] = judged(kernel, ())
        taken = judged(kernel, block)
        print(f"{kernel} K={depth} N={width} {block}: {_microseconds(taken)}, by rule {_microseconds(rules[kernel])}")
        by_rule = math.inf if rules[kernel] is None else rules[kernel]
        best, _ = found.get(kernel, (GAIN * by_rule, None))
        if taken is not None and taken < best:
            found[kernel] = taken, list(block)
    contracted = {"product_transposed": (width, depth), "sum_transposed": (width, depth)}
    entries = {}
    for kernel in rules:
        key = table_key(kernel, jnp.bfloat16, layout.tile, *contracted.get(kernel, (depth, width)))
        entries[key] = found[kernel][1] if kernel in found else None
    return entries


def fill(
    path: pathlib.Path, chip: str, judge: Callable, rows: int, groups: int, shapes: Iterable[Sequence[int]]
) -> None:
    """Writes what is found for each shape (K, N) into the chip's part of the table, in place of what it had there."""
    for depth, width in shapes:
        found = tune(judge, rows, groups, depth, width)
        table = json.loads(path.read_text())  # again after each shape, so that a killed run keeps what it found
        entries = {**table.get(chip, {}), **found}
        table[chip] = {key: block for key, block in sorted(entries.items()) if block}
        path.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")
        better = sum(map(bool, found.values()))
        print(f"{path}: {better} blocks better than the rules for K={depth} N={width} on {chip}")


def _microseconds(seconds: float | None) -> str:
    return "does not fit" if seconds is None else f"{1e6 * seconds:,.0f} us"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels_pallas.tune", description=__doc__)
    parser.add_argument("--target", help="a TPU to compile for (v4, v5e, v5p, v6e, tpu7x); none: this machine's")
    parser.add_argument("--shape", nargs=2, type=int, action="append", metavar=("K", "N"), help="may be repeated")
    parser.add_argument("--rows", type=int, default=8192, help="tokens T (default: 8192)")
    parser.add_argument("--groups", type=int, default=2, help="groups G (default: 2)")
    args = parser.parse_args()
    shapes = args.shape or [[1024, 4096]]
    with tempfile.TemporaryDirectory() as directory:
        dump = pathlib.Path(directory)
        if args.target:
            os.environ["JAX_PLATFORMS"] = "cpu"
            from kernels_pallas import ahead_of_time, schedule

            if args.target not in ahead_of_time.TPU_TOPOLOGIES:
                known = ", ".join(ahead_of_time.TPU_TOPOLOGIES)
                sys.exit(_refuse(f"--target: got {args.target!r}, expected one of {known}"))
            if reason := ahead_of_time.missing(args.target):
                sys.exit(_refuse(reason))
            schedule.dump_schedules(dump)
            chip, judge = args.target.removeprefix("tpu"), judge_by_schedule(args.target, dump)
        else:
            import jax
            from jax.experimental.pallas import tpu as pltpu

            if jax.default_backend() != "tpu":
                sys.exit(_refuse("this machine has no TPU; name one to compile for with --target"))
            chip, judge = str(pltpu.get_tpu_info().chip_version), judge_by_time
        from kernels_pallas.grouped_matmul.tpu_tiles import TABLE

        fill(TABLE, chip, judge, args.rows, args.groups, shapes)


def _refuse(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
