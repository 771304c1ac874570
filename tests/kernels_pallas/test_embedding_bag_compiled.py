"""The embedding bag through the real compilers of TPUs that are not there: cycles a row, and what is held at once."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.ahead_of_time import compile_for, missing
from kernels_pallas.embedding_bag import embedding_bag, embedding_bag_rows_gradient

ROOT = pathlib.Path(__file__).parents[2]
CYCLES = {"forward": 8, "weights' gradient": 10, "values' gradient": 8}  # a row, at T = 8,192 K = 128 D = 1,024 float32

installed = pytest.mark.skipif(bool(missing("v5e")), reason=missing("v5e") or "")


@installed
@pytest.mark.parametrize("target", ["v5e", "v6e"])
def test_a_row_costs_few_cycles_and_no_memory(tmp_path, target):
    out = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/embedding_bag.py", "--target", target, "--json", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {
        (row["name"].removeprefix(f"{target} "), row["metric"]): row for row in json.loads(out.read_text())["rows"]
    }
    for kernel, most in CYCLES.items():
        assert 1 < found[kernel, "a row"]["value"] <= most, kernel
        assert found[kernel, "temporary memory"]["ratio"] < 0.02, kernel  # of T x K x D; the table has as much


@installed
@pytest.mark.parametrize("target", ["v5e", "v6e"])
@pytest.mark.parametrize(("width", "dtype"), [(128, "bfloat16"), (384, "float32"), (2048, "bfloat16")])
def test_every_kernel_compiles(target, width, dtype):
    def run(values, rows, weights, dy):
        y, pull = jax.vjp(lambda values, weights: embedding_bag(values, rows, weights), values, weights)
        return y, pull(dy), embedding_bag_rows_gradient(dy, rows, weights, num_rows=1000)

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    arguments = shape(1000, width), shape(50, 5, dtype=jnp.int32), shape(50, 5, dtype=jnp.float32), shape(50, width)
    program = compile_for(target, run, *arguments)[0].as_text()
    for kernel in ("sums", "dots", "table"):
        assert f"embedding_bag_{kernel}" in program
