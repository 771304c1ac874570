"""Sampling against numpy: what is kept, how often it is drawn, and that rows do not see each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.generation.sampling import BLOCK, draw, guide, sample, truncate

PLAIN = {"top_k": 0, "top_p": 1.0, "truncated": False}


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def random_logits(seed, rows=7, size=23, illegal=0.4):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(rows, size)) * 2
    logits[generator.random((rows, size)) < illegal] = -np.inf
    logits[:, 3] = 0.5
    return logits


@pytest.mark.parametrize("top_p", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_smallest_set_with_that_mass(top_p):
    logits = random_logits(0)
    kept = np.isfinite(np.asarray(truncate(jnp.asarray(logits, jnp.float32), 0, top_p)))
    for row, keep in zip(logits, kept, strict=True):
        p = softmax(row)
        assert keep.any() and p[keep].sum() >= top_p - 1e-6
        assert p[keep].min() >= p[~keep].max(initial=0)
        if top_p < 1:  # without its least likely member it no longer has the mass
            assert keep.sum() == 1 or p[keep].sum() - p[keep].min() < top_p
        else:
            np.testing.assert_array_equal(keep, np.isfinite(row))


@pytest.mark.parametrize("top_k", [1, 2, 5, 50])
def test_top_k_keeps_exactly_the_greatest(top_k):
    logits = random_logits(1, illegal=0)
    logits[2] = 1.0  # all equal: ties never keep more than k
    kept = np.isfinite(np.asarray(truncate(jnp.asarray(logits, jnp.float32), top_k, 1.0)))
    np.testing.assert_array_equal(kept.sum(1), min(top_k, logits.shape[1]))
    for row, keep in zip(logits, kept, strict=True):
        assert row[keep].min() >= row[~keep].max(initial=-np.inf)
    np.testing.assert_array_equal(np.flatnonzero(kept[2]), np.arange(min(top_k, logits.shape[1])))


def test_top_p_counts_the_mass_of_what_top_k_left():
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]]))
    kept = np.isfinite(np.asarray(truncate(jnp.asarray(logits, jnp.float32), 2, 0.5)))
    np.testing.assert_array_equal(kept[0], [True, False, False, False])  # 0.4 / 0.7 >= 0.5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution_of_legal_tokens(temperature):
    logits = np.array([1.0, -0.5, 0.3, 2.0, 0.0])
    legal = np.array([True, True, False, True, True])
    draws = 20_000
    tokens = sample(
        jnp.tile(jnp.asarray(logits, jnp.float32), (draws, 1)),
        jnp.tile(jnp.asarray(legal), (draws, 1)),
        jax.random.split(jax.random.key(0), draws),
        temperature=temperature,
        **PLAIN,
    )
    expected = softmax(np.where(legal, logits / temperature, -np.inf))
    np.testing.assert_allclose(np.bincount(tokens, minlength=5) / draws, expected, atol=0.015)


def test_draws_from_a_vocabulary_of_several_blocks_follow_its_distribution():
    size, draws = 2 * BLOCK + 45, 50_000
    logits = random_logits(6, rows=1, size=size, illegal=0.3)[0]
    logits[BLOCK : 2 * BLOCK] = -np.inf  # a block without a legal token
    tokens, found = jax.jit(jax.vmap(draw, (None, 0)))(
        jnp.asarray(logits, jnp.float32), jax.random.split(jax.random.key(3), draws)
    )
    assert np.all(found)
    counts = np.bincount(tokens, minlength=size)
    expected = draws * softmax(logits)
    assert counts.sum() == draws and len(counts) == size and not counts[np.isneginf(logits)].any()
    legal = expected > 0
    chi_squared = np.sum((counts[legal] - expected[legal]) ** 2 / expected[legal])
    assert chi_squared < legal.sum() + 5 * np.sqrt(2 * legal.sum())


def test_greedy_takes_the_likeliest_legal_token_and_top_k_1_agrees():
    logits = random_logits(2, illegal=0)
    legal = np.random.default_rng(3).random(logits.shape) < 0.5
    legal[:, 0] = True
    keys = jax.random.split(jax.random.key(0), len(logits))
    expected = np.argmax(np.where(legal, logits, -np.inf), axis=1)
    arguments = jnp.asarray(logits, jnp.float32), jnp.asarray(legal), keys
    np.testing.assert_array_equal(sample(*arguments, temperature=0.0, **PLAIN), expected)
    narrowed = sample(*arguments, temperature=1.5, top_k=1, top_p=1.0, truncated=True)
    np.testing.assert_array_equal(narrowed, expected)


def test_a_row_depends_on_its_own_logits_and_key_only():
    logits = jnp.asarray(random_logits(4, illegal=0), jnp.float32)
    keys = jax.random.split(jax.random.key(1), len(logits))
    legal = jnp.ones(logits.shape, bool)
    settings = {"temperature": 1.0, "top_k": 9, "top_p": 0.9, "truncated": True}
    together = sample(logits, legal, keys, **settings)
    alone = [sample(logits[i : i + 1], legal[i : i + 1], keys[i : i + 1], **settings)[0] for i in range(len(logits))]
    np.testing.assert_array_equal(together, alone)


def test_illegal_tokens_are_never_drawn_even_from_broken_logits():
    legal = np.zeros((4, 6), bool)
    legal[:, 2] = legal[:, 5] = True
    keys = jax.random.split(jax.random.key(2), 4)
    for value in (np.nan, np.inf, -1e30):
        for temperature in (0.0, 1.0):
            logits = jnp.full((4, 6), value, jnp.float32)
            tokens = sample(logits, jnp.asarray(legal), keys, temperature=temperature, **PLAIN)
            assert set(np.asarray(tokens).tolist()) <= {2, 5}


def test_guidance_moves_from_the_unconditional_to_the_conditional_and_beyond():
    generator = np.random.default_rng(5)
    c, u = generator.normal(size=(2, 3, 8)).astype(np.float32)
    for g in (0.0, 1.0, 3.0):
        np.testing.assert_allclose(guide(jnp.asarray(c), jnp.asarray(u), jnp.float32(g)), u + g * (c - u), rtol=1e-5)
