"""The product-key kernel through the TPU compiler: its schedule against the time it may take, and its memory."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.ahead_of_time import compile_for, missing
from kernels_pallas.product_key import product_key_topk

ROOT = pathlib.Path(__file__).parents[2]
MOST = {("v5e", "exact"): 0.80, ("v6e", "exact"): 0.56, ("v5e", "packed"): 0.40, ("v6e", "packed"): 0.32}  # ms
needs_libtpu = pytest.mark.skipif(bool(missing("v5e")), reason=missing("v5e") or "")


@needs_libtpu
def test_schedules_and_memory_stay_within_bounds(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/product_key.py", "--target", "v5e", "v6e", "--json", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(row["name"], row["metric"]): row["value"] for row in json.loads(out.read_text())["rows"]}
    for (target, variant), most in MOST.items():
        assert 0.5 * most < found[f"{target} {variant}", "time"] <= most  # less would be a schedule misread
        assert found[f"{target} {variant}", "temporary memory"] < 1  # MiB; every score would take 256


@needs_libtpu
@pytest.mark.parametrize("target", ["v4", "tpu7x"])
def test_odd_sizes_and_gradients_compile(target):
    def run(queries, sub_keys):
        scores, pull = jax.vjp(lambda *a: product_key_topk(*a, 3)[0], queries, sub_keys)
        return scores, pull(scores)

    queries = jax.ShapeDtypeStruct((1500, 2, 2, 24), jnp.float32)
    sub_keys = jax.ShapeDtypeStruct((2, 2, 77, 24), jnp.float32)
    compiled, _ = compile_for(target, run, queries, sub_keys)
    assert "product_key_topk" in compiled.as_text()
