"""With one group XLA's path is the dense product itself: no loop, and rows of nobody stay zero."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.grouped_matmul import align_rows, group_rows, grouped_matmul, ungroup_rows


def product(x, weights, ids):
    layout = align_rows(ids, 1)
    return ungroup_rows(grouped_matmul(group_rows(x, layout), weights, layout, implementation="xla"), layout)


def test_one_group_is_a_dense_product_of_its_rows(rng):
    ids = rng.integers(-1, 1, 70).astype(np.int32)
    x, w, dy = (rng.normal(size=shape).astype(np.float32) for shape in ((70, 24), (1, 24, 40), (70, 40)))

    def both(x, w, ids, dy):
        y, pull = jax.vjp(lambda x, w: product(x, w, ids), x, w)
        return y, *pull(dy)

    own = np.where(ids[:, None] == 0, 1.0, 0.0)
    expected = own * (x @ w[0]), own * (dy @ w[0].T), ((own * x).T @ dy)[None]
    for found, wanted in zip(jax.jit(both)(x, w, ids, dy), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    text = str(jax.make_jaxpr(both)(x, w, ids, dy))
    assert " while[" not in text and text.count("dot_general[") == 3


def test_rows_of_nobody_alone_give_zeros():
    y = product(jnp.ones((9, 8)), jnp.ones((1, 8, 16)), jnp.full(9, -1, jnp.int32))
    assert not np.any(y)
