"""Experts against the sums they stand for, and what every routing may and may not see."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax import config
from mot_jax.config import Block, FrozenMapping
from mot_jax.config.experts import AverageKey, Depth, ExpertChoice, FeedForward, HashExperts, TokenChoice
from mot_jax.nn import transformer
from mot_jax.nn.context import Context
from mot_jax.nn.rows import enter, leave, make_rows
from mot_jax.routing.token_choice import hash_bucket
from tests.batches import VOCABULARY, random_batch, small_model
from tests.generation.models import random_params

FEED_FORWARD = ("feed_forward",)
DEEP = ((1, (Block(depth=Depth(capacity=0.5)), Block())),)
ROUTINGS = {
    "expert choice": {"feed_forward": ExpertChoice(experts=3), "untied": FEED_FORWARD},
    "expert choice, mixed": {"feed_forward": ExpertChoice(experts=4, capacity=1.5)},
    "token choice": {"feed_forward": TokenChoice(experts=4), "untied": FEED_FORWARD},
    "switch, limited": {"feed_forward": TokenChoice(experts=3, top_k=1, softmax="before", capacity=0.5)},
    "fine-grained and shared": {"feed_forward": TokenChoice(experts=6, top_k=3, shared=1, ffn_dim=16)},
    "average key": {"feed_forward": AverageKey(experts=6, top_k=2), "untied": FEED_FORWARD},
    "hash": {"feed_forward": HashExperts(experts=3), "untied": FEED_FORWARD},
    "hash owners": {"untied": ("attention", "feed_forward", "norm"), "owner": "hash"},
    "experts in one tower of MoT": {
        "feed_forward": FrozenMapping(text=ExpertChoice(experts=3)),
        "untied": ("attention", "feed_forward", "norm"),
    },
    "towers that route differently": {
        "feed_forward": FrozenMapping(text=ExpertChoice(experts=2), image=TokenChoice(experts=3)),
        "untied": FEED_FORWARD,
    },
    "depth": {"plan": DEEP},
    "depth and experts": {"plan": DEEP, "feed_forward": ExpertChoice(experts=2), "untied": FEED_FORWARD},
    "depth over the batch": {"plan": ((1, (Block(depth=Depth(capacity=0.5, selection="batch")), Block())),)},
    "depth in MoT": {"plan": DEEP, "untied": ("attention", "feed_forward", "norm")},
}


def model_of(name: str, **fields):
    return small_model(**{"dtype": "float32", "num_layers": 1, "auxiliary_routers": True, **ROUTINGS[name], **fields})


run_once = jax.jit(transformer.apply, static_argnums=0, static_argnames="causal")


def run_of(model, params, batch, causal):
    return run_once(model, params, batch, causal=causal)


def changed_at(batch, row, place):
    """The batch with another token of the same modality there."""
    tokens = batch.tokens.copy()
    kind = VOCABULARY.token_modality[tokens[row, place]]
    same = np.flatnonzero((VOCABULARY.token_modality == kind) & (np.arange(VOCABULARY.size) != tokens[row, place]))
    tokens[row, place] = same[0]
    return dataclasses.replace(batch, tokens=tokens)


@pytest.mark.parametrize("name", ROUTINGS)
def test_only_training_by_comparison_sees_the_future(rng, name):
    model, batch = model_of(name), random_batch(rng, 3, 24)
    params, place = random_params(model), 9
    other = changed_at(batch, 1, place)
    before, after = (np.asarray(run_of(model, params, b, True)[0]) for b in (batch, other))
    real = batch.segment_ids > 0
    np.testing.assert_allclose(after[1, :place], before[1, :place], atol=1e-5)
    np.testing.assert_allclose(after[[0, 2]][real[[0, 2]]], before[[0, 2]][real[[0, 2]]], atol=1e-5)
    assert np.abs(after[1, place] - before[1, place]).max() > 1e-3
    if not config.selects(model):
        seen, seen_after = (np.asarray(run_of(model, params, b, False)[0]) for b in (batch, other))
        np.testing.assert_allclose(seen_after[1, :place], seen[1, :place], atol=1e-5)


def test_expert_choice_in_training_may_see_the_future(rng):
    model, moved = model_of("expert choice"), 0.0
    params = random_params(model)
    for _ in range(5):
        batch = random_batch(rng, 3, 24)
        before, after = (np.asarray(run_of(model, params, b, False)[0]) for b in (batch, changed_at(batch, 2, 11)))
        moved = max(moved, np.abs(after[:2] - before[:2]).max())
    assert moved > 1e-3


@pytest.mark.parametrize("name", ["expert choice", "depth"])
def test_without_auxiliary_routers_a_causal_pass_is_refused(rng, name):
    model = model_of(name, auxiliary_routers=False)
    with pytest.raises(ValueError, match=r"causal: .* need auxiliary routers"):
        transformer.apply(model, random_params(model), random_batch(rng, 2, 8), causal=True)


def swiglu(x, gate, up, down):
    h = x @ gate
    return (h / (1 + np.exp(-h)) * (x @ up)) @ down


def naive(model, p, x, groups, tokens):
    """A layer's feed-forward, a token and an expert at a time, in float64."""
    (block,) = set(config.expand(model))
    out = np.zeros_like(x)
    column = 0
    for number, pool in enumerate(config.pools(model, block)):
        kind, first = pool.kind, pool.first
        mine = np.flatnonzero(groups == number) if len(config.pools(model, block)) > 1 else np.flatnonzero(groups >= 0)
        weight = np.zeros((len(x), kind.stored))
        if isinstance(kind, ExpertChoice | TokenChoice):
            scores = x @ p["router"][:, column : column + kind.experts]
            column += kind.experts
        if isinstance(kind, ExpertChoice):
            for expert in range(kind.experts):
                k = int(len(mine) * kind.capacity / kind.experts + 1e-9)
                best = mine[np.argsort(-scores[mine, expert], kind="stable")[:k]]
                weight[best, expert] = 1 / (1 + np.exp(-scores[best, expert]))
        elif isinstance(kind, TokenChoice):
            for t in mine:
                best = np.argsort(-scores[t], kind="stable")[: kind.top_k]
                e = np.exp(scores[t] - scores[t].max())
                weight[t, best] = e[best] / (e[best].sum() if kind.softmax == "after" else e.sum())
                weight[t, kind.experts :] = 1
        elif isinstance(kind, AverageKey):
            for t in mine:
                keys = p["gate"][first : first + kind.experts].mean(-1)
                weight[t, np.argsort(-(keys @ x[t]), kind="stable")[: kind.top_k]] = 1
        elif isinstance(kind, HashExperts):
            weight[mine, np.asarray(hash_bucket(jnp.asarray(tokens), kind.experts, 0))[mine]] = 1
        elif type(kind) is FeedForward:
            weight[mine, 0] = 1
        for expert in range(kind.stored):
            e = first + expert
            out += weight[:, expert : expert + 1] * swiglu(x, p["gate"][e], p["up"][e], p["down"][e])
    return out


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "expert choice",
        "expert choice, mixed",
        "token choice",
        "fine-grained and shared",
        "average key",
        "hash",
        "towers that route differently",
        "experts in one tower of MoT",
    ],
)
def test_experts_are_the_sum_they_stand_for(rng, name, grouped):
    model = model_of(name)
    params = random_params(model)["layers"]["0"]
    batch = random_batch(rng, 3, 24)
    x = rng.normal(size=(*batch.tokens.shape, model.dim)).astype(np.float32)
    groups = np.where(batch.segment_ids > 0, np.asarray(config.group_of_modality(model))[batch.modality_ids], -1)

    def run(p, x):
        from flax import nnx

        from mot_jax.nn.experts import Experts

        (block,) = set(config.expand(model))
        graph, _ = nnx.split(nnx.eval_shape(lambda: Experts(model, block, 1.0, nnx.Rngs(params=0))))
        angles = jnp.zeros((*batch.tokens.shape, 4))
        ids = (jnp.asarray(batch.tokens), jnp.asarray(groups, jnp.int32), jnp.asarray(batch.segment_ids))
        rows = make_rows(*ids, (angles, angles), 3 if grouped else None)
        context = Context(lambda *_: None, None, 0, 0, 1, False, None)
        y, report = nnx.merge(graph, p)(enter(rows, x), rows, context)
        return leave(rows, y), report

    y, report = jax.jit(run)(params["feed_forward"], jnp.asarray(x))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["feed_forward"])
    flat = x.reshape(-1, model.dim).astype(np.float64)
    expected = naive(model, p, flat, groups.reshape(-1), batch.tokens.reshape(-1)).reshape(x.shape)
    expected = np.where(batch.segment_ids[..., None] > 0, expected, 0)
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    dropped = [float(total) for name, (total, _) in report.metrics.items() if name.endswith("/dropped")]
    assert dropped == [0.0] * len(dropped)


@pytest.mark.parametrize("name", ROUTINGS)
def test_padding_changes_nothing_and_gets_no_gradient(rng, name):
    model = model_of(name)
    batch = random_batch(rng, 3, 24)
    params, real = random_params(model), batch.segment_ids > 0
    noise = np.where(real, batch.tokens, rng.integers(0, 90, batch.tokens.shape)).astype(np.int32)

    def loss(p, b):
        hidden, reports = transformer.apply(model, p, b)
        routed = sum(report.balance + report.auxiliary for report in reports.values())
        return (hidden**2 * real[..., None]).sum() + routed

    one = jax.jit(jax.value_and_grad(loss))
    plain, noisy = one(params, batch), one(params, dataclasses.replace(batch, tokens=noise))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(noisy), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max() + 1e-12)


def test_an_absent_modality_leaves_its_experts_without_gradient(rng):
    model = model_of("expert choice")
    batch = random_batch(rng, 2, 16)
    batch = dataclasses.replace(
        batch, tokens=np.minimum(batch.tokens, 89), modality_ids=np.zeros_like(batch.modality_ids)
    )

    def loss(p):
        return (transformer.apply(model, p, batch)[0] ** 2).sum()

    grads = jax.jit(jax.grad(loss))(random_params(model))["layers"]["0"]["feed_forward"]
    gate, router = np.asarray(grads["gate"]), np.asarray(grads["router"])
    assert (np.abs(router[:, :3]).max(0) > 0).all() and (router[:, 3:] == 0).all()
    assert np.abs(gate[:3]).max() > 0
    assert (gate[3:] == 0).all()


def test_a_token_that_skips_a_layer_is_unchanged_by_it(rng):
    model = small_model(dtype="float32", plan=((1, (Block(depth=Depth(capacity=0.25)),)),))
    params = random_params(model)
    batch = random_batch(rng, 4, 32)
    real = batch.segment_ids > 0
    hidden, reports = run_of(model, params, batch, False)
    table = np.asarray(params["embedding"]["table"])[batch.tokens]
    gain, epsilon = np.asarray(params["final_norm"]["gain"]), model.norm_epsilon
    skipped = table / np.sqrt((table**2).mean(-1, keepdims=True) + epsilon) * gain
    same = np.abs(np.asarray(hidden) - skipped).max(-1) < 1e-5
    scores = np.where(real, table @ np.asarray(params["layers"]["0"]["depth"]["router"]), -np.inf)
    for row in range(4):
        best = np.argsort(-scores[row], kind="stable")[: real[row].sum() // 4]
        assert set(np.flatnonzero(~same[row])) == set(best)
    assert reports[0].metrics["mixture_of_depths/selected"][0] == sum(real.sum(1) // 4)
