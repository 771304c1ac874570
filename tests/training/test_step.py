"""The optimizer step: accumulation equals the large batch, non-finite steps change nothing, one trace."""

import chex
import jax
import numpy as np
import optax
import pytest

from mot_jax.config import Data, Parallel
from mot_jax.config.experts import ExpertChoice
from mot_jax.errors import ConfigError
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.state import init_state
from mot_jax.training.step import make_loss_eval, make_train_step
from tests.batches import ALL, VOCABULARY, random_batch, small_model, small_run

SGD = optax.sgd(0.1)


def setup(tx=SGD, rows=4, **train):
    run = small_run(small_model(untied=ALL, num_layers=1), rows, 24, **train)
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    return run, mesh, init_state(run.model, tx, mesh, 0)


def test_accumulation_equals_the_large_batch(rng):
    batch = random_batch(rng, 4, 24)
    run, mesh, state = setup()
    whole, metrics = make_train_step(run, VOCABULARY, mesh, SGD)(state, batch)
    run, mesh, state = setup(accumulation=4)
    parts, part_metrics = make_train_step(run, VOCABULARY, mesh, SGD)(state, batch)
    chex.assert_trees_all_close(whole.params, parts.params, rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(metrics, part_metrics, rtol=1e-5)


def test_a_step_that_is_not_finite_changes_only_the_counters(rng):
    tx = optax.adam(1e-2)
    run, mesh, state = setup(tx)
    step = make_train_step(run, VOCABULARY, mesh, tx)
    good = random_batch(rng, 4, 24)
    state, _ = step(state, good)
    before = jax.device_get(state)
    poison = np.where(good.loss_weights > 0, np.inf, 0).astype(np.float32)
    bad = type(good)(**{**vars(good), "loss_weights": poison})
    state, metrics = step(state, bad)
    state, metrics = step(state, bad)
    after = jax.device_get(state)
    chex.assert_trees_all_equal(before.params, after.params)
    chex.assert_trees_all_equal(before.opt_state, after.opt_state)
    assert (after.step, after.bad_steps, after.skipped) == (3, 2, 2)
    assert metrics["skipped"][0] == 1 and metrics["bad_steps"][0] == 2
    state, _ = step(state, good)
    assert int(state.bad_steps) == 0 and int(state.skipped) == 2
    assert not np.array_equal(before.params["head"]["table"], state.params["head"]["table"])


def test_one_trace_and_learning(rng):
    tx = optax.adam(1e-2)
    run, mesh, state = setup(tx)
    batch = random_batch(rng, 4, 24)
    step = make_train_step(run, VOCABULARY, mesh, tx)
    evaluate = make_loss_eval(run, VOCABULARY, mesh)
    first = evaluate(state.params, batch)["loss"]
    for _ in range(5):
        state, _ = step(state, batch)
    assert step._cache_size() == 1
    last = evaluate(state.params, batch)["loss"]
    assert last[0] / last[1] < first[0] / first[1] - 0.3


def test_rows_that_do_not_divide_are_refused():
    run, mesh, _ = setup()
    run = type(run)(**{**vars(run), "data": Data(global_batch_size=3), "train": run.train})
    run = type(run)(**{**vars(run), "train": type(run.train)(accumulation=2)})
    with pytest.raises(ConfigError, match=r"Data\.global_batch_size: 3 rows are not a multiple of 2"):
        make_train_step(run, VOCABULARY, mesh, SGD)


@pytest.mark.parametrize("only", [None, "auxiliary_routers"])
def test_experts_noise_is_for_their_own_training_alone(rng, only):
    batch, losses = random_batch(rng, 4, 24), []
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    for noise in (False, True):
        kind = ExpertChoice(experts=2, noise=noise)
        model = small_model(num_layers=1, untied=("feed_forward",), feed_forward=kind, auxiliary_routers=True)
        run = small_run(model, 4, 24, only=only)
        state = init_state(model, optax.sgd(0.0), mesh, 0)
        _, metrics = make_train_step(run, VOCABULARY, mesh, optax.sgd(0.0))(state, batch)
        losses.append(float(metrics["loss"][0]))
    assert (losses[0] == losses[1]) == (only is not None)
