"""The numerics contract of grouped_matmul: every back end against a float64 numpy loop over rows, on fresh inputs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.grouped_matmul import (
    align_rows,
    group_rows,
    grouped_matmul,
)
from kernels_pallas.grouped_matmul.api import IMPLEMENTATIONS
from tests.kernels_pallas.grouped import (
    GPU_K,
    GPU_N,
    GPU_TILE,
    GROUPS,
    ROWS,
    TILE,
    TOLERANCE,
    K,
    N,
    assert_close,
    compiled,
    draw,
    float64,
    gpu,
    reference,
    reference_gradients,
)


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        *itertools.product(sorted({*IMPLEMENTATIONS} - {"gpu"}), TOLERANCE),
        pytest.param("gpu", "bfloat16", marks=gpu.marks),
    ],
    indirect=["implementation"],
)
def test_values_and_gradients(rng, case, implementation, dtype):
    ids, groups, tile = case
    tile, depth, width = (GPU_TILE, GPU_K, GPU_N) if implementation == "gpu" else (tile, K, N)
    x, dy = draw(rng, dtype, len(ids), depth), draw(rng, dtype, len(ids), width)
    w, w_up = draw(rng, dtype, groups, depth, width), draw(rng, dtype, groups, depth, width)
    w_down = draw(rng, dtype, groups, width, width)
    got = jax.device_get(compiled(implementation, groups, tile)(ids, x, dy, w, w_up, w_down))
    (plain, plain_gradients, _), (transposed, transposed_gradients, _), (swiglu, swiglu_gradients, _), whole = got

    x64, dy64, w64, up64, down64 = float64(x, dy, w, w_up, w_down)
    gate, up = reference(ids, x64, w64, up64)
    dx, dw = reference_gradients(ids, x64, dy64, w64)
    for y, gradients in ((plain, plain_gradients), (transposed, transposed_gradients)):
        assert_close(y, gate, dtype)
        assert_close(gradients[0], dx, dtype)
    assert_close(plain_gradients[1], dw, dtype)
    assert_close(transposed_gradients[1], np.swapaxes(dw, 1, 2), dtype)

    sigmoid = 1 / (1 + np.exp(-gate))
    hidden = gate * sigmoid * up

    def through_gate_and_up(d_hidden):
        from_gate = reference_gradients(ids, x64, d_hidden * up * sigmoid * (1 + gate * (1 - sigmoid)), w64)
        from_up = reference_gradients(ids, x64, d_hidden * gate * sigmoid, up64)
        return from_gate[0] + from_up[0], from_gate[1], from_up[1]

    assert_close(swiglu, hidden, dtype)
    for gradient, expected in zip(swiglu_gradients, through_gate_and_up(dy64), strict=True):
        assert_close(gradient, expected, dtype)

    d_hidden, d_down = reference_gradients(ids, hidden, dy64, down64)
    assert_close(whole[0], reference(ids, hidden, down64)[0], dtype)
    for gradient, expected in zip(whole[1], (*through_gate_and_up(d_hidden), d_down), strict=True):
        assert_close(gradient, expected, dtype)

    empty = np.setdiff1d(np.arange(groups), ids)
    for _, (_, *weight_gradients), padding in got:
        assert not np.any(padding)
        assert not any(np.any(d[empty]) for d in weight_gradients)


def test_zeros_give_exact_zeros(implementation):
    on_gpu = implementation == "gpu"
    tile, depth, width = (GPU_TILE, GPU_K, GPU_N) if on_gpu else (TILE, K, N)
    shapes = (ROWS, depth), (ROWS, width), *[(GROUPS, depth, width)] * 2, (GROUPS, width, width)
    ids = np.arange(-1, ROWS - 1, dtype=np.int32) % 6
    inputs = [np.zeros(shape, jnp.bfloat16 if on_gpu else np.float32) for shape in shapes]
    assert not any(np.any(a) for a in jax.tree.leaves(compiled(implementation, GROUPS, tile)(ids, *inputs)))


@pytest.mark.parametrize(
    ("rows", "depth", "width", "reason"),
    [(0, K, N, "there are no rows"), (10, 0, N, "0 columns"), (10, K, 0, "0 columns")],
)
def test_sizes_of_zero_give_empty_arrays_and_zeros(rng, rows, depth, width, reason):
    ids = rng.integers(0, GROUPS, rows).astype(np.int32)
    shapes = (rows, depth), (rows, width), *[(GROUPS, depth, width)] * 2, (GROUPS, width, width)
    inputs = ids, *(draw(rng, "float32", *shape) for shape in shapes)
    x, _, *weights = inputs[1:]
    whole = jax.eval_shape(compiled(None, GROUPS, TILE), *inputs)
    for asked in ("xla", "reference"):
        got = compiled(asked, GROUPS, TILE)(*inputs)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), got) == jax.tree.map(lambda a: (a.shape, a.dtype), whole)
        assert not any(np.any(a) for a in jax.tree.leaves(got))
        for y, (dx, *_), _ in got:
            assert y.shape == (rows, width)
            assert dx.shape == x.shape
        assert [d.shape for d in got[-1][1][1:]] == [w.shape for w in weights]
    with pytest.raises(ValueError, match=f"tpu: {reason}"):
        jax.eval_shape(compiled("tpu", GROUPS, TILE), *inputs)


def test_products_of_bfloat16_accumulate_in_float32(implementation):
    # 256 + 256 / 64: each small term is lost in a sum of bfloat16's eight bits.
    layout = align_rows(jnp.zeros(1, jnp.int32), 1, tile=GPU_TILE if implementation == "gpu" else None)
    x = jnp.zeros((1, 272), jnp.bfloat16).at[:, :257].set(1)
    weights = jnp.concatenate([jnp.full((1, 1, 16), 256.0), jnp.ones((1, 271, 16)) / 64], axis=1).astype(jnp.bfloat16)
    y = grouped_matmul(group_rows(x, layout), weights, layout, implementation=implementation)
    assert y[0, 0] == 260


def test_weight_gradients_of_bfloat16_accumulate_in_float32(implementation):
    # 256 of the first tile and 4 of the others, of which a sum of bfloat16's eight bits would keep nothing.
    tile, others = (GPU_TILE, 16) if implementation == "gpu" else (8, 64)
    x = np.zeros(((1 + others) * tile, 16), jnp.bfloat16)
    x[::tile] = 4 / others
    x[0] = 256

    def run(x, weights):
        layout = align_rows(jnp.zeros(len(x), jnp.int32), 1, tile=tile)
        y, pull = jax.vjp(lambda w: product(group_rows(x, layout), w, layout), weights)
        return pull(jnp.ones_like(y))[0]

    product = functools.partial(grouped_matmul, implementation=implementation)
    np.testing.assert_array_equal(jax.jit(run)(x, np.zeros((1, 16, 16), x.dtype)), 260)
