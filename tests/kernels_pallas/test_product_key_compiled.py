"""The product-key kernels through the real compilers: schedules against the time they may take, memory, spills."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.ahead_of_time import compile_for, missing
from kernels_pallas.product_key import product_key_topk

ROOT = pathlib.Path(__file__).parents[2]
MOST = {"v5e": {"exact": 0.80, "packed": 0.40}, "v6e": {"exact": 0.56, "packed": 0.32}}  # ms
needs_cuda = pytest.mark.skipif(bool(missing("h100")), reason=missing("h100") or "")
needs_libtpu = pytest.mark.skipif(bool(missing("v5e")), reason=missing("v5e") or "")


def shapes(tokens: int, heads: int, depth: int, num_keys: int, dtype) -> tuple[jax.ShapeDtypeStruct, ...]:
    sizes = (tokens, heads, 2, depth), (heads, 2, num_keys, depth)
    return tuple(jax.ShapeDtypeStruct(each, dtype) for each in sizes)


@needs_libtpu
@pytest.mark.parametrize("target", MOST)
def test_schedules_and_memory_stay_within_bounds(tmp_path, target):
    out = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/product_key.py", "--target", target, "--json", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(row["name"], row["metric"]): row["value"] for row in json.loads(out.read_text())["rows"]}
    for variant, most in MOST[target].items():
        assert 0.5 * most < found[f"{target} {variant}", "time"] <= most  # less would be a schedule misread
        assert found[f"{target} {variant}", "temporary memory"] < 1  # MiB; every score would take 256


@needs_libtpu
@pytest.mark.parametrize("target", ["v4", "v6e", "tpu7x"])
def test_odd_sizes_and_gradients_compile(target):
    def run(queries, sub_keys):
        scores, pull = jax.vjp(lambda *a: product_key_topk(*a, 3)[0], queries, sub_keys)
        return scores, pull(scores)

    compiled, _ = compile_for(target, run, *shapes(1500, 2, 24, 77, jnp.float32))
    assert "product_key_topk" in compiled.as_text()


@needs_cuda
@pytest.mark.parametrize(
    ("sizes", "k", "dtype"), [((8192, 4, 128, 1024), 32, jnp.bfloat16), ((300, 1, 24, 77), 1, jnp.float32)]
)
def test_the_h100_kernel_compiles_without_spilling(capfd, monkeypatch, sizes, k, dtype):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    asked = functools.partial(product_key_topk, k=k, implementation="gpu")
    compiled, _ = compile_for("h100", asked, *shapes(*sizes, dtype))
    assert compiled.as_text().count('custom_call_target="mosaic_gpu') == 1
    assert compiled.memory_analysis().temp_size_in_bytes < 48 << 20  # every score would take 256 MiB
    spilled = re.findall(r"(\d+) bytes spill", "".join(capfd.readouterr()))
    assert len(spilled) == 2
    assert not any(map(int, spilled))
