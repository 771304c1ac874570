"""Attention within packed documents, in blocks and whole, against a masked softmax in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.nn import attention, blockwise


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


@pytest.fixture(params=["row by row", "all rows at once"])
def rows_at_once(request, monkeypatch):
    """As on a CPU, and as everywhere else."""
    if request.param == "all rows at once":
        monkeypatch.setattr(blockwise, "_by_platform", lambda loop, *arrays: loop(1, *arrays))


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize("block", [512, 8, 7, 1], ids=["whole", "blocks", "uneven blocks", "blocks of one"])
def test_causal_within_documents(block, rng, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    q, k, v, segments = packed(rng)
    out = attention.causal_in_document(q, k, v, segments)
    np.testing.assert_allclose(out, reference(*map(np.asarray, (q, k, v, segments))), rtol=1e-4, atol=1e-5)


def differentiated(q, k, v, segments):
    """As jax has it, so that its gradient is one that nobody wrote."""
    order = jnp.arange(q.shape[1])
    seen = (segments[:, :, None] == segments[:, None, :]) & (order[:, None] >= order)
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None])


@pytest.mark.usefixtures("rows_at_once")
@pytest.mark.parametrize("block", [512, 8, 7], ids=["whole", "blocks", "uneven blocks"])
def test_gradients_by_hand_are_those_of_the_softmax(block, rng, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", block)
    q, k, v, segments = packed(rng)
    weights = jnp.float32(rng.standard_normal(q.shape))

    def gradients(attend):
        return jax.grad(lambda *a: jnp.sum(attend(*a, segments) * weights), (0, 1, 2))(q, k, v)

    for wanted, got in zip(gradients(differentiated), gradients(attention.causal_in_document), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_scores_of_any_size_overflow_nothing(rng):
    q, k, v, segments = packed(rng)
    out, pull = jax.vjp(lambda *a: attention.causal_in_document(*a, segments), 1e4 * q, k, v)
    assert all(bool(jnp.isfinite(x).all()) for x in (out, *pull(jnp.ones_like(out))))
    np.testing.assert_allclose(out, differentiated(1e4 * q, k, v, segments), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_rounded_only_between_products(rng):
    q, k, v, segments = packed(rng)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    out, pull = jax.vjp(lambda *a: attention.causal_in_document(*a, segments), *half)
    want, pull_want = jax.vjp(lambda *a: attention.causal_in_document(*a, segments), *(jnp.float32(x) for x in half))
    for got, exact in zip((out, *pull(jnp.ones_like(out))), (want, *pull_want(jnp.ones_like(want))), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(jnp.float32(got), exact, rtol=0.03, atol=0.03)


def test_long_sequences_never_hold_a_square_array():
    shape = jax.ShapeDtypeStruct((1, 4096, 2, 16), np.float32)
    segments = jax.ShapeDtypeStruct((1, 4096), np.int32)

    def loss(q, k, v, segments):
        return attention.causal_in_document(q, k, v, segments).sum()

    jaxpr = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(shape, shape, shape, segments))
    assert "4096" in jaxpr
    assert "4096,4096" not in jaxpr
