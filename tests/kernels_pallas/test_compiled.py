"""Kernels through the real compilers of accelerators that are not there: schedules against floors, memory, refusals."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from kernels_pallas.ahead_of_time import compile_for, missing
from kernels_pallas.grouped_matmul import align_rows, group_rows, grouped_feed_forward, ungroup_rows

ROOT = pathlib.Path(__file__).parents[2]
# Shares of the matrix units' peak. The v6e is judged where it is bound by compute: fewer rows are bound by memory.
FLOORS = {
    ("v5e", 8192): {"forward": 0.95, "transposed": 0.95, "swiglu": 0.95, "weight gradient": 0.90},
    ("v5p", 8192): {"forward": 0.90, "transposed": 0.90, "swiglu": 0.90, "weight gradient": 0.85},
    ("v6e", 32768): {"forward": 0.80, "transposed": 0.80, "swiglu": 0.80, "weight gradient": 0.70},
}
SPILLED = 0.35  # registers a cycle: the schedules at the floors above hide that many
SLOTS_AT_MOST = 1.25  # slots a row, of which the rematerialised gradient holds a few arrays


def installed(*targets: str) -> pytest.MarkDecorator:
    reasons = [reason for target in targets if (reason := missing(target))]
    return pytest.mark.skipif(bool(reasons), reason=reasons[0] if reasons else "")


def static_schedule(tmp_path, target: str, rows: int) -> dict[tuple[str, str], dict]:
    """The benchmark's rows by (case, metric)."""
    out = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/static_schedule.py", "--target", target, "--rows", str(rows), "--json", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    prefix, suffix = f"{target} ", f" (T={rows})"
    found = json.loads(out.read_text())["rows"]
    return {(row["name"].removeprefix(prefix).removesuffix(suffix), row["metric"]): row for row in found}


@installed("v5e")
@pytest.mark.parametrize(("target", "rows"), FLOORS)
def test_schedules_reach_their_floors(tmp_path, target, rows):
    found = static_schedule(tmp_path, target, rows)
    for case, floor in FLOORS[target, rows].items():
        step = found[case, "grid step"]
        assert step["ratio"] >= floor, case
        assert found[case, "spilled"]["value"] <= SPILLED * step["value"], case
    for case in ("forward", "transposed", "swiglu"):
        assert found[case, "temporary memory"]["value"] < 1
    weights = 8 * 1024 * 4096 * 4 / 2**20  # the gradient is summed in float32
    assert found["weight gradient", "temporary memory"]["value"] < 1.01 * weights
    activations = SLOTS_AT_MOST * rows * 4096 * 2 / 2**20
    whole = found["feed-forward, rematerialised gradient", "temporary memory"]["value"]
    assert whole < 4 * activations + weights


@installed("h100")
def test_both_paths_compile_for_an_h100(tmp_path):
    found = {case: row["value"] for (case, _), row in static_schedule(tmp_path, "h100", 8192).items()}  # MiB
    activations = SLOTS_AT_MOST * 8192 * 4096 * 2 / 2**20
    layer = "feed-forward, rematerialised gradient"
    assert 0 < found["forward"] < 2 * activations
    assert found[layer] < 16 * activations
    for case in ("forward", "transposed", "swiglu", "weight gradient"):
        assert found[f"{case}, kernels"] < 1
    assert found[f"{layer}, kernels"] < 5 * activations


@installed("h100")
@pytest.mark.parametrize(("batch", "depth", "width"), [(1, 64, 1376), (3, 48, 80)])
def test_the_h100_kernels_are_called(batch, depth, width):
    def layer(ids, x, gate, up, down):
        layout = align_rows(ids, 2, tile=128)
        run = functools.partial(grouped_feed_forward, layout=layout, implementation="gpu")
        y, pull = jax.vjp(lambda *a: ungroup_rows(run(group_rows(a[0], layout), *a[1:]), layout), x, gate, up, down)
        return y, pull(y)

    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((batch, *sizes), dtype)

    up, down = shape(2, depth, width), shape(2, width, depth)
    arguments = shape(500, dtype=jnp.int32), shape(500, depth), up, up, down
    compiled, _ = compile_for("h100", jax.vmap(layer), *arguments)
    assert compiled.as_text().count('custom_call_target="mosaic_gpu') == 7


@installed("v5e")
def test_an_illegal_kernel_does_not_compile():
    def copy(x, out):
        out[...] = x[...]

    def call(columns):
        def function(x):
            spec = pl.BlockSpec((8, columns), lambda i: (i, 0))
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return pl.pallas_call(copy, grid=(2,), in_specs=[spec], out_specs=spec, out_shape=shape)(x)

        return compile_for("v5e", function, jax.ShapeDtypeStruct((16, 1 << 21), jnp.float32))

    with pytest.raises(Exception, match=r"(?i)vmem"):  # two blocks of 64 MiB, and double-buffered
        call(1 << 21)
    call(1 << 12)


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match="target: got 'v5', expected one of v4, v5e, v5p"):
        compile_for("v5", jnp.sin, jax.ShapeDtypeStruct((8, 128), jnp.float32))
