"""Experts on four devices give what they give on one, however the tokens choose; every load fits what is sent."""

import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from mot_jax.config import Pool
from mot_jax.config.experts import AverageKey, ExpertChoice, FeedForward, HashExperts, TokenChoice
from mot_jax.parallel.expert_exchange import exchanged_feed_forward
from mot_jax.routing import expert_choice, load, token_choice
from mot_jax.routing.assignment import Tokens, overlay

DEVICES, TOKENS, DIM, WIDTH, EXPERTS, WAYS = 4, 9, 8, 16, 8, 2


def reference(x, ids, weights, gate, up, down):
    """Token by token, float64."""
    y = np.zeros(x.shape)
    for token, of_token in enumerate(ids):
        for expert, weight in zip(of_token, weights[token], strict=True):
            if expert >= 0:
                gated = x[token] @ gate[expert]
                y[token] += weight * ((gated / (1 + np.exp(-gated)) * (x[token] @ up[expert])) @ down[expert])
    return y


@pytest.fixture(scope="module")
def exchanged():
    """(all devices' arrays) -> outputs and gradients; room for 3 of the 18 pairs that a device may send another."""
    if jax.device_count() < DEVICES:
        pytest.skip("needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = jax.make_mesh((DEVICES,), ("expert",), devices=jax.devices()[:DEVICES], axis_types=(AxisType.Auto,))
    split = PartitionSpec("expert")

    def one(x, ids, weights, gate, up, down, dy):
        def loss(x, weights, gate, up, down):
            y = exchanged_feed_forward(x, ids, weights, (gate, up, down), axis="expert", room=3, most=18)
            return jnp.sum(y * dy), y

        grads, y = jax.grad(loss, argnums=(0, 1, 2, 3, 4), has_aux=True)(x, weights, gate, up, down)
        return y, grads

    return jax.jit(jax.shard_map(one, mesh=mesh, in_specs=(split,) * 7, out_specs=(split, split), check_vma=False))


@pytest.mark.parametrize("choice", ["any", "all of one device", "none"])
def test_every_pair_reaches_its_expert(choice, exchanged, rng):
    """Also 18 pairs for one device, in 6 rounds of 3, and rounds that are empty."""
    x, dy = rng.standard_normal((2, DEVICES * TOKENS, DIM)).astype(np.float32)
    ids = np.stack([rng.permutation(EXPERTS)[:WAYS] for _ in x]).astype(np.int32)
    if choice == "all of one device":
        ids = ids % 2 + 2 * (np.arange(len(x))[:, None] // TOKENS == 1)  # the second device's tokens to the second
        ids[:, 1] = ids[:, 0] ^ 1
    ids[rng.random(ids.shape) < (1.0 if choice == "none" else 0.1)] = -1
    weights = rng.random(ids.shape).astype(np.float32)
    gate, up = rng.standard_normal((2, EXPERTS, DIM, WIDTH)).astype(np.float32)
    down = rng.standard_normal((EXPERTS, WIDTH, DIM)).astype(np.float32)
    y, grads = jax.device_get(exchanged(x, ids, weights, gate, up, down, dy))
    arrays = [a.astype(np.float64) for a in (x, weights, gate, up, down)]

    def run(x, weights, gate, up, down):
        return reference(x, ids, weights, gate, up, down)

    np.testing.assert_allclose(y, run(*arrays), rtol=1e-4, atol=1e-4)
    for number, grad in enumerate(grads):  # along a random direction, by a central difference
        direction, step = rng.standard_normal(grad.shape), 1e-5
        ends = [
            np.sum(dy * run(*(a + sign * step * direction if i == number else a for i, a in enumerate(arrays))))
            for sign in (1, -1)
        ]
        np.testing.assert_allclose(np.sum(grad * direction), (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-3)


POOLS = {
    "expert choice": [ExpertChoice(experts=8, capacity=2.0)],
    "two pools that choose, one that does not": [
        ExpertChoice(experts=4, capacity=1.5),
        ExpertChoice(experts=3),
        FeedForward(),
    ],
    "token choice with a shared expert": [TokenChoice(experts=7, top_k=2, shared=1)],
    "token choice with capacity": [TokenChoice(experts=8, top_k=2, capacity=1.25)],
    "average key, hash, token choice": [AverageKey(experts=4, top_k=3), HashExperts(experts=2), TokenChoice(experts=2)],
}


@pytest.mark.parametrize("kinds", POOLS.values(), ids=POOLS)
def test_no_load_is_more_than_what_is_sent(kinds, rng):
    """Of random scores, and of scores that all prefer the same experts; whichever pool the tokens are of."""
    starts = np.cumsum([0] + [kind.stored for kind in kinds])
    pools = [Pool(str(i), kind, int(first)) for i, (kind, first) in enumerate(zip(kinds, starts, strict=False))]
    blocks, length = 2, 24
    for bias, own in [(0, None), (9, None), *((9, number) for number in range(len(pools)))]:
        owner = np.full((blocks, length), own) if own is not None else rng.integers(0, len(pools), (blocks, length))
        assigned = []
        for number, pool in enumerate(pools):
            count = getattr(pool.kind, "experts", 1)
            scores = rng.standard_normal((blocks, length, count)).astype(np.float32) - bias * np.arange(count)
            tokens = Tokens(jnp.asarray(scores, jnp.float32), jnp.asarray(owner == number), pool.first)
            if isinstance(pool.kind, ExpertChoice):
                share = fractions.Fraction(pool.kind.active, pool.kind.experts)
                assigned.append(expert_choice.assign(tokens, expert_choice.take_tokens(tokens, share)))
            elif isinstance(pool.kind, TokenChoice):
                assigned.append(token_choice.assign(tokens, pool.kind))
            else:
                assigned.append(token_choice.assign_unweighted(tokens, getattr(pool.kind, "top_k", 1)))
        ids = np.asarray(overlay(assigned)[0])
        for held in (1, 2, 4):
            room, most = load.room(pools, held, blocks * length, limited=True)
            assert np.bincount(ids[ids >= 0] // held, minlength=1).max() <= most, (bias, own, held)
            devices = EXPERTS // held
            assert room <= most and devices * room <= 1.25 * 3 * blocks * length + devices  # 3 experts a token at most


def test_experts_that_choose_need_one_round_and_no_more_room_than_their_tokens():
    pool = Pool("all", ExpertChoice(experts=8, capacity=1.0), 0)
    assert load.room([pool], 2, 100, limited=True) == (25, 25)
    assert load.room([pool], 2, 100, limited=False) == (200, 200)  # auxiliary routers may take every token
