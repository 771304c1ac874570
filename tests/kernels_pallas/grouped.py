"""The problems of the grouped products' tests, their reference in float64, and all products in one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.grouped_matmul import (
    align_rows,
    group_rows,
    grouped_feed_forward,
    grouped_matmul,
    grouped_swiglu,
    ungroup_rows,
)

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
K, N = 24, 40

# An older interpreter reads no transposed block, and drops a store that is partly out of bounds: see test_gpu.py.
gpu = pytest.param("gpu", marks=pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="needs jax 0.11"))

ROWS, GROUPS, TILE = 70, 4, 16  # shared by most cases, so that they share their compiled programs
GPU_TILE, GPU_K, GPU_N = 64, 48, 80  # the smallest tile, and columns in sixteens
CASES = {
    "uneven": lambda rng: rng.choice(GROUPS, ROWS, p=rng.dirichlet(np.full(GROUPS, 0.5))),
    "unowned rows": lambda rng: rng.integers(-2, GROUPS + 2, ROWS),
    "empty groups": lambda rng: rng.choice([1, 3], ROWS),
    "all in one group": lambda rng: np.full(ROWS, 2),
    "whole tiles": lambda rng: rng.permutation(np.repeat([0, 1, 3, -1], [32, 16, 16, 6])),
    "skew": lambda rng: rng.permutation(np.repeat([0, 1, 2], [60, 1, 9])),
    "nobody": lambda rng: np.full(ROWS, -1),
    "one row": lambda rng: np.array([1]),
    "more groups than rows": lambda rng: rng.integers(0, 40, 7),
}
OTHER_GROUPS = {"more groups than rows": 40}


def draw(rng, dtype, *shape):
    return np.asarray(rng.normal(size=shape), jnp.dtype(dtype))


def float64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def reference(ids, x, *weights):
    """One product a row and matrix; rows nobody owns stay zero."""
    out = np.zeros((len(weights), len(ids), weights[0].shape[2]))
    for row, group in enumerate(ids):
        if 0 <= group < len(weights[0]):
            out[:, row] = [x[row] @ w[group] for w in weights]
    return out


def reference_gradients(ids, x, dy, weights):
    dx, dw = np.zeros_like(x), np.zeros_like(weights)
    for row, group in enumerate(ids):
        if 0 <= group < len(weights):
            dx[row] = weights[group] @ dy[row]
            dw[group] += np.outer(x[row], dy[row])
    return dx, dw


def assert_close(got, expected, dtype):
    assert got.dtype == jnp.dtype(dtype)
    assert got.shape == expected.shape
    (got,) = float64(got)
    assert np.linalg.norm(got - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, expected)


@functools.cache
def compiled(implementation, groups, tile):
    """Values, slots and gradients of all four products in one program."""

    def one(function, x, dy, ids, *weights):
        layout = align_rows(ids, groups, tile=tile)

        def run(x, *weights):
            slots = function(group_rows(x, layout), *weights, layout, implementation=implementation)
            return ungroup_rows(slots, layout), slots

        y, pull, slots = jax.vjp(run, x, *weights, has_aux=True)
        return y, pull(dy), jnp.where((layout.row_of_slot == layout.num_rows)[:, None], slots, 0)

    def every(ids, x, dy, w, w_up, w_down):
        transposed = functools.partial(grouped_matmul, transpose_weights=True)
        return (
            one(grouped_matmul, x, dy, ids, w),
            one(transposed, x, dy, ids, jnp.swapaxes(w, 1, 2)),
            one(grouped_swiglu, x, dy, ids, w, w_up),
            one(grouped_feed_forward, x, dy, ids, w, w_up, w_down),
        )

    return jax.jit(every)


def problem(rng, implementation):
    """A loss of (x, weights, ids) over two products, small enough to be transformed in every way."""
    x, weights = (jnp.asarray(draw(rng, "float32", *shape)) for shape in ((33, K), (3, K, N)))
    weights, ids = weights / K**0.5, jnp.asarray(rng.integers(-1, 3, 33), jnp.int32)

    def loss(x, weights, ids):
        layout = align_rows(ids, 3, tile=16)
        rows = group_rows(x, layout)
        h = grouped_swiglu(rows, weights, weights + 1, layout, implementation=implementation)
        y = grouped_matmul(h, weights, layout, transpose_weights=True, implementation=implementation)
        down = jnp.swapaxes(weights, 1, 2)
        y = y + grouped_feed_forward(rows, weights, weights - 1, down, layout, implementation=implementation)
        return jnp.sum(jnp.sin(ungroup_rows(y, layout)))

    return loss, x, weights, ids
