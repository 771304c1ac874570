"""The optimizer against its equations in numpy, and the schedule at the places that matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.config import Model, Optimizer, resolve
from mot_jax.nn import transformer
from mot_jax.training.optimizer import decayed, make_optimizer, make_schedule


@pytest.mark.parametrize(("kind", "middle", "last"), [("cosine", 0.55, 0.1), ("linear", 0.55, 0.1), ("constant", 1, 1)])
def test_schedule_rises_and_ends_where_it_should(kind, middle, last):
    schedule = make_schedule(Optimizer(learning_rate=2.0, warmup_steps=10, schedule=kind), 110)
    rates = [float(schedule(count)) for count in range(110)]
    np.testing.assert_allclose(rates[:10], 2.0 * np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[59], 2.0 * middle)
    np.testing.assert_allclose(rates[109], 2.0 * last)
    assert np.all(np.diff(rates[9:]) <= 0)
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(jnp.arange(110)), rates, rtol=1e-5)


def test_schedule_is_finite_for_runs_shorter_than_the_warmup():
    for steps in (0, 1, 5, 10):
        rates = [float(make_schedule(Optimizer(learning_rate=1.0, warmup_steps=10), steps)(c)) for c in range(steps)]
        np.testing.assert_allclose(rates, np.arange(1, steps + 1) / 10)
    assert float(make_schedule(Optimizer(learning_rate=1.0, warmup_steps=0), 1)(0)) == pytest.approx(0.1)


def test_updates_are_clipped_adamw():
    config = Optimizer(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5, clip_norm=1.0)
    tx, _ = make_optimizer(config, 100)
    rng = np.random.default_rng(0)
    params = {"down": rng.normal(size=(3, 2)), "norm": {"gain": rng.normal(size=(2,))}}
    ours = jax.tree.map(jnp.float32, params)
    state = tx.init(ours)
    first = jax.tree.map(np.zeros_like, params)
    second = jax.tree.map(np.zeros_like, params)
    for step in range(1, 4):
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape) * 3, params)
        updates, state = tx.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        norm = np.sqrt(sum(np.sum(g**2) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g, norm=norm: g / max(norm, 1.0), grads)
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g**2, second, grads)
        decay = {"down": 0.5, "norm": {"gain": 0.0}}
        params = jax.tree.map(
            lambda p, m, v, d, t=step: p - 0.1 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8) + d * p),
            params,
            first,
            second,
            decay,
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), ours, params)


def test_a_norm_that_is_told_is_not_taken_again():
    tx, _ = make_optimizer(Optimizer(clip_norm=1.0), 10)
    params, gradients = {"w": jnp.zeros(4)}, {"w": jnp.full(4, 3.0)}
    taken, told, other = (
        tx.update(gradients, tx.init(params), params, **more)[1] for more in ({}, {"norm": 6.0}, {"norm": 12.0})
    )
    jax.tree.map(np.testing.assert_array_equal, taken, told)
    first = [state[1][0].mu["w"] for state in (taken, other)]
    np.testing.assert_allclose(first[1], first[0] / 2)


def test_untied_parameters_decay_as_their_dense_counterparts():
    plain = Model(dim=32, num_layers=2, num_heads=2, norm="layer", qk_norm="layer", qkv_bias=True)
    untied = Model(**{**vars(plain), "untied": ("attention", "feed_forward", "norm")})
    masks = {}
    for name, model in (("plain", plain), ("untied", untied)):
        model = resolve(model, ("text", "image"), 100)
        masks[name] = decayed(transformer.abstract(model))
        axes = transformer.logical_axes(model)
        for path, value in jax.tree_util.tree_leaves_with_path(masks[name]):
            kind = axes
            for key in path:
                kind = kind[key.key]
            own = [axis for axis in kind if axis != "group"]
            assert value == (len(own) > 1 and path[-1].key != "bias"), (path, kind)
    assert masks["plain"] == masks["untied"]


def test_no_clipping_when_the_norm_is_zero():
    config = Optimizer(learning_rate=1.0, warmup_steps=0, schedule="constant", clip_norm=0.0, weight_decay=0.0)
    tx, _ = make_optimizer(config, 10)
    params = {"w": jnp.ones((2, 2))}
    updates, _ = tx.update({"w": jnp.full((2, 2), 1e6)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -1.0, rtol=1e-4)
