"""Norms with a gain for each group against NumPy, their gradients against those that jax takes by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mot_jax.nn.norm import Norm
from mot_jax.nn.rows import enter, leave, make_rows

EPSILON = 1e-5
SHAPE = (2, 12, 3, 8)  # rows x tokens x heads x width


def rows_of(rng):
    groups = jnp.asarray(rng.integers(0, 3, SHAPE[:2]), jnp.int32)
    segments = jnp.asarray(rng.integers(0, 2, SHAPE[:2]), jnp.int32)
    angles = (jnp.zeros((*SHAPE[:2], 4)),) * 2
    return make_rows(groups * 0, groups, segments, angles, 3), groups, segments


def by_hand(x, gain, bias):
    if bias is not None:
        x = x - x.mean(-1, keepdims=True)
    y = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
    return y * gain if bias is None else y * gain + bias


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_values_and_gradients_of_untied_norms(kind, rng):
    rows, groups, segments = rows_of(rng)
    graph, state = nnx.split(Norm(8, kind, EPSILON, 3))
    gain, bias = (jnp.float32(rng.standard_normal((3, 8))) for _ in range(2))
    x, weights = (jnp.float32(rng.standard_normal(SHAPE)) for _ in range(2))
    weights = weights * (segments > 0)[..., None, None]  # what belongs to nobody is not a row

    def ours(x, *vectors):
        new = jax.tree.unflatten(jax.tree.structure(state), reversed(vectors))  # bias before gain
        return jnp.sum(leave(rows, nnx.merge(graph, new)(enter(rows, x), rows)) * weights)

    def theirs(x, gain, bias=None):
        own = [None if a is None else a[groups][:, :, None] for a in (gain, bias)]
        return jnp.sum(by_hand(x, *own) * weights)

    given = (x, gain, bias) if kind == "layer" else (x, gain)
    places = tuple(range(len(given)))
    results = (jax.tree.leaves(jax.value_and_grad(loss, places)(*given)) for loss in (ours, theirs))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
