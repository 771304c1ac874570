"""Attention within packed documents, in blocks and whole, against a masked softmax in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.nn import attention
from mot_jax.nn.blockwise import blockwise_attention


def reference(q, k, v, segments):
    heads, kv_heads = q.shape[2], k.shape[2]
    k, v = (np.repeat(x, heads // kv_heads, 2) for x in (k, v))
    scores = np.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(q.shape[-1])
    order = np.arange(q.shape[1])
    seen = (segments[:, :, None] == segments[:, None, :]) & (order[:, None] >= order)
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bnst,btnh->bsnh", weights / weights.sum(-1, keepdims=True), v)


def packed(rng):
    q = rng.standard_normal((2, 24, 4, 8))
    k, v = rng.standard_normal((2, 2, 24, 2, 8))
    return (*(jnp.float32(x) for x in (q, k, v)), jnp.int32(np.sort(rng.integers(0, 4, (2, 24)), 1)))


@pytest.mark.parametrize("block", [512, 8, 7, 1], ids=["whole", "blocks", "uneven blocks", "blocks of one"])
def test_causal_within_documents(block, rng, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    q, k, v, segments = packed(rng)
    out = attention.causal_in_document(q, k, v, segments)
    np.testing.assert_allclose(out, reference(*map(np.asarray, (q, k, v, segments))), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [8, 7])
def test_gradients_in_blocks_equal_those_of_the_whole(block, rng):
    q, k, v, segments = packed(rng)
    weights = jnp.float32(rng.standard_normal(q.shape))
    whole = jax.grad(lambda *a: jnp.sum(attention.causal_in_document(*a, segments) * weights), (0, 1, 2))
    blocks = jax.grad(lambda *a: jnp.sum(blockwise_attention(*a, segments, block) * weights), (0, 1, 2))
    for a, b in zip(whole(q, k, v), blocks(q, k, v), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_long_sequences_never_hold_a_square_array():
    shape = jax.ShapeDtypeStruct((1, 4096, 2, 16), np.float32)
    segments = jax.ShapeDtypeStruct((1, 4096), np.int32)

    def loss(q, k, v, segments):
        return attention.causal_in_document(q, k, v, segments).sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(shape, shape, shape, segments))
    assert "4096" in jaxpr
    assert "4096,4096" not in jaxpr
