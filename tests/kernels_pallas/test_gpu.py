"""The Hopper kernels in interpret mode, beyond the contract in test_grouped_matmul.py, which needs jax 0.11."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams, force_gpu_interpret_mode
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels_pallas import gpu_chip
from kernels_pallas.grouped_matmul import (
    align_rows,
    gpu,
    gpu_rows,
    gpu_stream,
    gpu_weights,
    group_rows,
    xla,
)

# An older interpreter reads no transposed block, and takes blocks that are partly out of bounds for mistakes.
whole_interpreter = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="needs jax 0.11's interpreter")
GROUPS, ROWS = 3, 100
IDS = {
    "skew": lambda rng: rng.permutation(np.repeat([0, 1, -1], [70, 25, 5])),
    "all in one group": lambda rng: np.full(ROWS, 2),
}


@pytest.fixture(autouse=True)
def two_multiprocessors(monkeypatch):
    monkeypatch.setattr(gpu_stream, "MULTIPROCESSORS", 2)  # they run one after the other


def draw(rng, *shape):
    return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)


def assert_close(got, expected):
    got, expected = (np.asarray(a, np.float64) for a in (got, expected))
    assert np.all(np.isfinite(got))
    assert np.linalg.norm(got - expected) <= 5e-3 * np.linalg.norm(expected)


# The workers share a block by columns, by rows.
@pytest.mark.parametrize(("ids", "tile"), [("skew", 64), ("all in one group", 128)])
def test_rows(rng, ids, tile):
    depth, width = 128, 128  # whole blocks
    layout = align_rows(jnp.asarray(IDS[ids](rng), jnp.int32), GROUPS, tile=tile)
    x, other = (group_rows(draw(rng, ROWS, depth), layout) for _ in range(2))
    w, w_up = (draw(rng, GROUPS, depth, width) for _ in range(2))
    with force_gpu_interpret_mode():
        got = (
            gpu_rows.product((x,), (w,), layout, transpose=False),
            gpu_rows.product((x, other), (w, w_up), layout, transpose=False),
            *gpu_rows.swiglu(x, w, w_up, layout, keep=True),
        )
    gate, up = (xla.matmul(x, each, layout, transpose=False) for each in (w, w_up))
    both = gate.astype(jnp.float32) + xla.matmul(other, w_up, layout, transpose=False)
    for mine, expected in zip(got, (gate, both, xla.swiglu(x, w, w_up, layout, keep=False)[0], gate, up), strict=True):
        assert_close(mine, expected)


def test_tiles_that_nobody_owns_are_not_read():
    layout = align_rows(jnp.full(ROWS, -1, jnp.int32), GROUPS, tile=64)
    x, w = jnp.full((layout.num_slots, 64), jnp.nan, jnp.bfloat16), jnp.ones((GROUPS, 64, 64), jnp.bfloat16)
    with force_gpu_interpret_mode():
        assert not np.any(gpu_rows.product((x,), (w,), layout, transpose=False))
        assert not np.any(gpu_weights.weight_gradient(x, x, layout))


@whole_interpreter
# Blocks that stick out, and several of them; every number of columns a swizzled row can have.
@pytest.mark.parametrize(("tile", "depth", "width"), [(64, 16, 272), (128, 160, 96), (192, 64, 64)])
def test_blocks_that_do_not_divide_the_matrices(rng, tile, depth, width):
    layout = align_rows(jnp.asarray(IDS["skew"](rng), jnp.int32), GROUPS, tile=tile)
    x, dy = (group_rows(draw(rng, ROWS, size), layout) for size in (depth, width))
    w, w_up = (draw(rng, GROUPS, depth, width) for _ in range(2))
    with force_gpu_interpret_mode():
        got = (
            gpu_rows.product((x,), (w,), layout, transpose=False),
            gpu_rows.product((dy, dy), (w, w_up), layout, transpose=True),
            *gpu_rows.swiglu(x, w, w_up, layout, keep=False),
            gpu_weights.weight_gradient(x, dy, layout),
        )
    expected = (
        xla.matmul(x, w, layout, transpose=False),
        sum(xla.matmul(dy, each, layout, transpose=True).astype(jnp.float32) for each in (w, w_up)),
        *xla.swiglu(x, w, w_up, layout, keep=False),
        xla.matmul_gradient(x, w, dy, layout, transpose=False)[1],
    )
    for mine, other in zip(got, expected, strict=True):
        assert_close(mine, other)


@whole_interpreter
def test_kernels_race_with_nothing(rng, monkeypatch):
    """Products are not asynchronous in the interpreter: it cannot tell a block that is given back too early."""
    monkeypatch.setattr(gpu_stream, "MULTIPROCESSORS", 1)
    layout = align_rows(jnp.asarray(IDS["skew"](rng), jnp.int32), GROUPS, tile=128)
    depth, width = 336, 144  # more steps than stages; an odd number of blocks to write
    x, dy = group_rows(draw(rng, ROWS, depth), layout), group_rows(draw(rng, ROWS, width), layout)
    w = draw(rng, GROUPS, depth, width)

    def races():
        with force_gpu_interpret_mode(InterpretGPUParams(detect_races=True)):
            y = gpu_rows.product((x,), (w,), layout, transpose=False)
            jax.block_until_ready((y, gpu_weights.weight_gradient(x, dy, layout)))
        return interpret_pallas_call.get_races().races_found

    assert not races()
    wait = plgpu.wait_smem_to_gmem  # the reads' waits keep a block from being overwritten
    monkeypatch.setattr(plgpu, "wait_smem_to_gmem", lambda n, wait_read_only=False: wait_read_only or wait(n))
    assert races()


@pytest.mark.parametrize(("rows", "columns", "band"), [(7, 3, 3), (6, 3, 3), (2, 5, 16), (1, 1, 8)])
def test_bands_pass_every_block_once(rows, columns, band):
    passed = [tuple(map(int, gpu_stream.in_bands(jnp.int32(i), rows, columns, band))) for i in range(rows * columns)]
    assert sorted(passed) == [(row, column) for row in range(rows) for column in range(columns)]
    assert {row for row, _ in passed[: band * columns]} == set(range(min(band, rows)))


def test_what_is_not_taken():
    ids = jnp.zeros(100, jnp.int32)
    x, w = jnp.zeros((128, 64), jnp.bfloat16), jnp.zeros((2, 64, 64), jnp.bfloat16)
    layout = align_rows(ids, 2, tile=64)
    assert gpu.unsupported(layout, x, w) is None
    assert gpu.unsupported(layout, x.astype(jnp.float32), w) == "rows are float32, expected bfloat16"
    assert gpu.unsupported(layout, x, w[:, :, :56]) == "56 columns, expected a multiple of 16"
    assert gpu.unsupported(align_rows(ids, 2, tile=32), x, w) == "tiles hold 32 rows, expected a multiple of 64"
    assert gpu.unsupported(align_rows(ids[:0], 2, tile=64), x[:0], w) == "there are no rows"


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GH200 480GB", "NVIDIA H20"])
def test_a_hopper_is_known_by_its_name(name):
    assert gpu_chip.HOPPER.search(name)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-80GB", "Tesla T4", "NVIDIA B200", "NVIDIA L4", "TPU v5 lite"])
def test_other_devices_are_refused(monkeypatch, name):
    class Device:
        device_kind = name

    monkeypatch.setattr(gpu_chip, "device", Device)
    layout = align_rows(jnp.zeros(100, jnp.int32), 2, tile=64)
    x, w = jnp.zeros((128, 64), jnp.bfloat16), jnp.zeros((2, 64, 64), jnp.bfloat16)
    assert gpu.unsupported(layout, x, w) == f"the device is {name}, expected a Hopper GPU"
