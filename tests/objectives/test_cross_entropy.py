"""Chunked cross-entropy against float64 NumPy, and its one-pass gradient against the textbook's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.objectives import cross_entropy as module
from mot_jax.objectives.cross_entropy import cross_entropy


def inputs(rng, tokens=37, dim=8, vocab=50):
    hidden = rng.standard_normal((tokens, dim)).astype(np.float32)
    head = rng.standard_normal((vocab, dim)).astype(np.float32)
    weights = rng.choice([0.0, 1.0, 2.5], tokens).astype(np.float32)
    return hidden, head, rng.integers(0, vocab, tokens).astype(np.int32), weights


def reference(hidden, head, targets, weights, z_loss):
    logits = hidden.astype(np.float64) @ head.astype(np.float64).T
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - logits[np.arange(len(targets)), targets]
    return (weights * (nll + z_loss * log_z**2)).sum(), nll


@pytest.mark.parametrize("entries", [1 << 23, 500], ids=["one chunk", "ragged chunks"])
def test_values_and_gradients(entries, rng, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_ENTRIES", entries)
    hidden, head, targets, weights = inputs(rng)
    total, nll = cross_entropy(*map(jnp.asarray, (hidden, head, targets, weights)), 0.01)
    expected, expected_nll = reference(hidden, head, targets, weights, 0.01)
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(nll, expected_nll, rtol=1e-4, atol=1e-4)

    def naive(hidden, head):
        logits = hidden @ head.T
        log_z = jax.nn.logsumexp(logits, -1)
        picked = jnp.take_along_axis(logits, targets[:, None], -1)[:, 0]
        return 3 * (weights * (log_z - picked + 0.01 * log_z**2)).sum()

    got = jax.grad(lambda *a: 3 * cross_entropy(*a, *map(jnp.asarray, (targets, weights)), 0.01)[0], (0, 1))(
        hidden, head
    )
    for a, b in zip(got, jax.grad(naive, (0, 1))(hidden, head), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_never_holds_all_logits():
    shapes = [((8192, 64), np.float32), ((65536, 64), np.float32), ((8192,), np.int32), ((8192,), np.float32)]
    args = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    compiled = jax.jit(jax.grad(lambda *a: cross_entropy(*a, 1e-5)[0], (0, 1))).lower(*args).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 8192 * 65536 * 4 / 4
