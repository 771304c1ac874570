"""The embedding bag through the real compilers of chips that are not there: cycles a row, and what is held at once."""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from kernels_pallas.ahead_of_time import compile_for, missing
from kernels_pallas.embedding_bag import embedding_bag, embedding_bag_rows_gradient

ROOT = pathlib.Path(__file__).parents[2]
CYCLES = {"forward": 8, "weights' gradient": 8, "values' gradient": 8}  # a row, at T = 8,192 K = 128 D = 1,024 float32
MIB = 1 << 20


def installed(target: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(bool(missing(target)), reason=missing(target) or "")


def run(values, rows, weights, dy, *, implementation=None):
    bag = functools.partial(embedding_bag, implementation=implementation)
    y, pull = jax.vjp(lambda values, weights: bag(values, rows, weights), values, weights)
    touched = embedding_bag_rows_gradient(dy, rows, weights, num_rows=values.shape[0], implementation=implementation)
    return y, pull(dy), touched


def shapes(num_rows: int, tokens: int, slots: int, width: int, dtype: str) -> tuple[jax.ShapeDtypeStruct, ...]:
    entries = (tokens, slots)
    of = ((num_rows, width), dtype), (entries, "int32"), (entries, "float32"), ((tokens, width), dtype)
    return tuple(jax.ShapeDtypeStruct(*each) for each in of)


@installed("v5e")
def test_a_row_costs_few_cycles_and_no_memory(tmp_path):
    out = tmp_path / "rows.json"
    command = [sys.executable, "benchmarks/embedding_bag.py", "--target", "v5e", "--json", out]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(row["name"], row["metric"]): row for row in json.loads(out.read_text())["rows"]}
    for kernel, most in CYCLES.items():
        assert 1 < found[f"v5e {kernel}", "a row"]["value"] <= most, kernel
        assert found[f"v5e {kernel}", "temporary memory"]["ratio"] < 0.02, kernel  # of T x K x D; the table has as much


@installed("v5e")
@pytest.mark.parametrize(
    ("target", "width", "dtype"), [("v5e", 128, "bfloat16"), ("v6e", 384, "float32"), ("v6e", 2048, "bfloat16")]
)
def test_every_kernel_compiles(target, width, dtype):
    program = compile_for(target, run, *shapes(1000, 50, 5, width, dtype))[0].as_text()
    for kernel in ("sums", "dots", "table"):
        assert f"embedding_bag_{kernel}" in program


@installed("h100")
@pytest.mark.parametrize(("width", "dtype"), [(128, "bfloat16"), (1024, "float32"), (8192, "float32")])
def test_the_h100_kernels_compile_without_spilling(capfd, monkeypatch, width, dtype):
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    asked = functools.partial(run, implementation="gpu")
    program = compile_for("h100", asked, *shapes(1000, 50, 8, width, dtype))[0].as_text()
    assert program.count('custom_call_target="mosaic_gpu') == 4  # the bag, two gradients of values, one of weights
    spilled = re.findall(r"(\d+) bytes spill", "".join(capfd.readouterr()))
    assert len(spilled) >= 6  # stores and loads of each different kernel
    assert not any(map(int, spilled))


@installed("h100")
def test_an_h100_holds_no_row_of_every_token():
    arguments = shapes(16384, 8192, 128, 1024, "float32")

    def held(implementation):
        compiled, _ = compile_for("h100", functools.partial(run, implementation=implementation), *arguments)
        return compiled.memory_analysis().temp_size_in_bytes

    assert held("gpu") < 64 * MIB  # sorted entries
    assert held(None) < 1024 * MIB  # of T x K x D = 4 GiB


@installed("v5e")
@pytest.mark.parametrize(("target", "slots", "width"), [("v5p", 5, 384), ("v6e", 150, 128), ("tpu7x", 8, 2048)])
def test_the_sparse_cores_kernel_compiles(target, slots, width):
    bag = functools.partial(embedding_bag, implementation="sparse_core")
    compiled, _ = compile_for(target, bag, *shapes(1000, 50, slots, width, "float32")[:3])
    assert "embedding_bag_sparse_core" in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes < MIB  # no copy of the table


@installed("v5e")
def test_where_there_is_no_sparse_core_this_is_said():
    bag = functools.partial(embedding_bag, implementation="sparse_core")
    for target, dtype, reason in (
        ("v5e", "float32", "no SparseCores"),
        ("v6e", "bfloat16", "bfloat16, expected float32"),
    ):
        with pytest.raises(ValueError, match=f"sparse_core: .*{reason}"):
            compile_for(target, bag, *shapes(1000, 50, 5, 128, dtype)[:3])
