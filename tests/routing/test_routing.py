"""Selections against sorts and counts, and the losses of token choice against their formulas."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.config.experts import TokenChoice, exact
from mot_jax.routing import expert_choice, token_choice
from mot_jax.routing.assignment import Tokens
from mot_jax.routing.top_rows import top_members

top = jax.jit(top_members)


def tokens_of(rng, blocks=2, length=30, experts=4, ties=False):
    scores = rng.normal(size=(blocks, length, experts))
    scores = np.round(scores) if ties else scores
    return Tokens(jnp.asarray(scores, jnp.float32), jnp.asarray(rng.random((blocks, length)) < 0.7), 3)


def test_the_best_k_are_those_a_stable_sort_puts_first(rng):
    values = np.array([-np.inf, -1e30, -2.0, -0.0, 0.0, 0.5, 1e-30, 1e30, np.inf], np.float32)
    for _ in range(50):
        scores, eligible = rng.choice(values, (4, 20)), rng.random((4, 20)) < 0.7
        k = rng.integers(0, 23, 4)
        members = np.asarray(top(scores, eligible, k.astype(np.int32)))
        for row in range(4):
            order = [i for i in np.argsort(-scores[row], kind="stable") if eligible[row, i]]
            assert set(np.flatnonzero(members[row])) == set(order[: k[row]])


@pytest.mark.parametrize("share", ["1/4", "1/3", "3/8", "1"])
def test_every_expert_takes_its_share_of_the_real_tokens(rng, share):
    tokens = tokens_of(rng, ties=True)
    members = np.asarray(jax.jit(lambda: expert_choice.take_tokens(tokens, Fraction(share)))())
    mine = np.asarray(tokens.mine)
    assert not members[~mine].any()
    for block in range(2):
        k = int(mine[block].sum() * Fraction(share))
        np.testing.assert_array_equal(members[block].sum(0), k)
        worst = np.where(members[block], np.asarray(tokens.scores)[block], np.inf).min(0)
        left = np.where(~members[block] & mine[block, :, None], np.asarray(tokens.scores)[block], -np.inf).max(0)
        assert (worst >= left).all()


def test_decimals_mean_what_they_say():
    assert exact(0.1) * 10 == 1 and exact(1 / 3) * 3 == 1 and exact(1.25) == Fraction(5, 4)
    counts = jnp.arange(0, 5000, 7)
    np.testing.assert_array_equal(
        expert_choice.share_of(counts, exact(0.3) / 7), [c * 3 // 70 for c in range(0, 5000, 7)]
    )


def test_noise_is_logistic_and_belongs_to_its_block():
    key = jax.random.key(0)
    draw = np.asarray(expert_choice.logistic_noise(key, 4, 0, (5000,)))
    later = expert_choice.logistic_noise(key, 2, 2, (5000,))
    np.testing.assert_array_equal(draw[2:], later)
    assert abs(draw.std() - np.pi / np.sqrt(3)) < 0.05  # a standard logistic's
    assert abs(np.corrcoef(draw[0], draw[1])[0, 1]) < 0.05


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("softmax", ["before", "after"])
def test_token_choice_and_its_balance_loss(rng, top_k, softmax):
    tokens = tokens_of(rng)
    kind = TokenChoice(experts=4, top_k=top_k, softmax=softmax, balance_loss=0.1, z_loss=0.01)
    made = jax.jit(lambda: vars(token_choice.assign(tokens, kind)))()
    scores, mine = np.asarray(tokens.scores, np.float64), np.asarray(tokens.mine)
    every = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = 0.0
    for block in range(2):
        used, n = np.zeros(4), mine[block].sum()
        for t in np.flatnonzero(mine[block]):
            best = np.argsort(-scores[block, t])[:top_k]
            share = every[block, t, best]
            weights = share / share.sum() if softmax == "after" else share
            np.testing.assert_array_equal(made["experts"][block, t], 3 + best)
            np.testing.assert_allclose(made["weights"][block, t], weights, rtol=1e-5)
            used[best] += weights if softmax == "after" else 1 / top_k
        offered = every[block][mine[block]].mean(0)
        z = np.log(np.exp(scores[block][mine[block]]).sum(-1)) ** 2
        expected += 0.1 * 4 * (used / n * offered).sum() + 0.01 * z.mean()
    np.testing.assert_allclose(made["loss"], expected, rtol=1e-4)
    assert (np.asarray(made["experts"])[~mine] == -1).all()


def test_a_limited_expert_takes_first_choices_first_and_early_tokens_first():
    scores = jnp.asarray([[[3.0, 2.0], [3.0, 2.0], [2.0, 3.0], [3.0, 2.0]]])
    kind = TokenChoice(experts=2, top_k=2, capacity=0.5)  # 4 tokens x 2 choices / 2 experts x 0.5 = 2 each
    experts = token_choice.assign(Tokens(scores, jnp.ones((1, 4), bool), 0), kind).experts
    np.testing.assert_array_equal(experts[0], [[0, 1], [0, -1], [1, -1], [-1, -1]])
    free = token_choice.assign(Tokens(scores, jnp.ones((1, 4), bool), 0), kind, limited=False).experts
    assert (np.asarray(free) >= 0).all()


def test_hashes_spread_tokens_evenly_and_differ_by_layer():
    ids = jnp.arange(60_000)
    first, second = (np.asarray(token_choice.hash_bucket(ids, 6, salt)) for salt in (0, 1))
    for buckets in (first, second):
        counts = np.bincount(buckets, minlength=6)
        assert counts.min() > 9_500 and counts.max() < 10_500
    both = np.bincount(first * 6 + second, minlength=36)
    assert both.min() > 1_450 and both.max() < 1_900
