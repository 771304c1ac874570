"""The tables' own optimizer against optax, and updates of the rows that were read against dense ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kernels_pallas.embedding_bag import RowsGradient
from mot_jax.config import Optimizer, Parallel, ValuesOptimizer
from mot_jax.config.memory import Memory
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training import values
from mot_jax.training.optimizer import make_optimizer, make_schedule
from mot_jax.training.state import init_state
from mot_jax.training.step import gradients, make_train_step
from tests.batches import ALL, VOCABULARY, random_batch, small_model, small_run

STEPS = 20
MEMORY = Memory(layers=(0, 1), num_keys=16, heads=2, top_k=4)


def one_device():
    return make_mesh(Parallel(), jax.devices()[:1])


def optimizer(update, **fields):
    return Optimizer(
        warmup_steps=2, values=ValuesOptimizer(learning_rate=0.02, weight_decay=0.3, update=update, **fields)
    )


def tree(array):
    return {"values": {"shared": array}}


def updated(config, table, grads, apply=True):
    """The table and its state after one update for each gradient."""
    table = tree(jnp.asarray(table))
    state = values.init(table)
    step = jax.jit(lambda *a: values.update(config, STEPS, *a))
    for number, grad in enumerate(grads):
        table, state = step(table, state, tree(grad), jnp.asarray(apply), jax.random.key(number))
    return table["values"]["shared"], state


def test_a_dense_update_is_adamw_with_the_tables_own_settings(rng):
    config = optimizer("dense", clip_norm=0.5)
    table = rng.standard_normal((40, 1, 8)).astype(np.float32)
    grads = [rng.standard_normal(table.shape).astype(np.float32) for _ in range(4)]
    schedule = make_schedule(dataclasses.replace(config, learning_rate=0.02), STEPS)
    tx = optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.adamw(schedule, b1=config.b1, b2=config.b2, eps=config.epsilon, weight_decay=0.3),
    )
    expected, state = jnp.asarray(table), tx.init(jnp.asarray(table))
    for grad in grads:
        updates, state = tx.update(grad, state, expected)
        expected = optax.apply_updates(expected, updates)
    got, _ = updated(config, table, grads)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_rows_that_were_read_move_as_in_a_dense_update_and_no_other_does(rng):
    table = rng.standard_normal((50, 1, 8)).astype(np.float32)
    read = np.sort(rng.choice(50, 20, replace=False)).astype(np.int32)
    sums = rng.standard_normal((20, 8)).astype(np.float32)
    dense = np.zeros(table.shape, np.float32)
    dense[read, 0] = sums
    by_row = RowsGradient(jnp.asarray(np.append(read, [50] * 5)), jnp.asarray(np.pad(sums, ((0, 5), (0, 0)))))
    expected, dense_state = updated(optimizer("dense"), table, [dense])
    rest = np.setdiff1d(np.arange(50), read)
    for got, state in (
        updated(optimizer("touched"), table, [by_row]),
        updated(optimizer("touched"), table, [dense]),  # found from a dense gradient, as on a mesh
    ):
        np.testing.assert_allclose(np.asarray(got)[read], np.asarray(expected)[read], rtol=1e-6)
        np.testing.assert_array_equal(np.asarray(got)[rest], table[rest])
        for mine, theirs in ((state.first, dense_state.first), (state.second, dense_state.second)):
            moments = np.asarray(mine["values"]["shared"])
            np.testing.assert_allclose(moments, theirs["values"]["shared"], rtol=1e-5, atol=1e-9)
            assert not moments[rest].any() and moments[read].any()
    assert np.abs(np.asarray(expected)[rest] - table[rest]).max() > 1e-3  # weight decay reaches them in a dense one


@pytest.mark.parametrize("update", ["dense", "touched"])
def test_a_step_that_is_not_finite_changes_nothing(update, rng):
    table = rng.standard_normal((9, 1, 8)).astype(np.float32)
    got, state = updated(optimizer(update), table, [np.full(table.shape, np.nan, np.float32)], apply=False)
    np.testing.assert_array_equal(got, table)
    assert int(state.count) == 0 and not np.asarray(state.first["values"]["shared"]).any()


def test_stochastic_rounding_keeps_the_mean_and_only_takes_neighbours(rng):
    x = jnp.asarray(rng.standard_normal(50).astype(np.float32) * 10.0 ** rng.integers(-6, 6, 50))
    draws = jax.vmap(lambda key: values.stochastically_rounded(x, key))(jax.random.split(jax.random.key(3), 4000))
    draws = np.asarray(draws, np.float64)
    step = 2.0 ** (np.floor(np.log2(np.abs(np.asarray(x, np.float64)))) - 7)
    assert (np.abs(draws - np.asarray(x)) < step).all()
    assert np.abs((draws.mean(0) - np.asarray(x)) / step).max() < 0.05  # five standard errors of the mean
    exact = jnp.asarray([1.5, -2.0, 0.0, jnp.inf], jnp.float32)
    np.testing.assert_array_equal(
        np.asarray(values.stochastically_rounded(exact, jax.random.key(0)), np.float32), exact
    )


def test_bfloat16_tables_learn_from_steps_too_small_for_them():
    config = Optimizer(
        warmup_steps=0, schedule="constant", values=ValuesOptimizer(learning_rate=1e-4, weight_decay=0.0)
    )
    table = jnp.ones((400, 1, 8), jnp.bfloat16)
    got, _ = updated(config, table, [np.ones(table.shape, np.float32)] * STEPS)
    assert got.dtype == jnp.bfloat16
    assert float(jnp.mean(1 - got.astype(jnp.float32))) == pytest.approx(STEPS * 1e-4, rel=0.2)


@pytest.mark.parametrize(
    ("fields", "accumulation"),
    [({}, 1), ({"untied": ALL, "remat": "full"}, 2), ({"memory": dataclasses.replace(MEMORY, shared=False)}, 2)],
    ids=["two layers, one table", "mot, accumulated", "two tables, accumulated"],
)
def test_gradients_by_row_are_the_dense_ones(fields, accumulation, rng):
    model = small_model(**{"memory": MEMORY, "dtype": "float32", **fields})
    run = small_run(model, 4, 24, accumulation=accumulation)
    params = init_state(model, optax.sgd(1.0), one_device(), 0).params
    batch = jax.tree.map(jnp.asarray, random_batch(rng, 4, 24))
    dense, by_row = (
        jax.jit(lambda p, b, rows=rows: gradients(run, VOCABULARY, p, b, jnp.int32(0), rows)[0])(params, batch)
        for rows in (False, True)
    )
    for name, gradient in by_row.pop("values").items():
        expected = np.asarray(dense["values"][name])
        assert isinstance(gradient, RowsGradient)
        got = np.zeros_like(expected).reshape(len(expected), -1)
        rows = np.asarray(gradient.rows)
        got[rows[rows < len(got)]] = np.asarray(gradient.values)[rows < len(got)]
        error = np.linalg.norm(got - expected.reshape(got.shape)) / np.linalg.norm(expected)
        assert error < 1e-5, name
    del dense["values"]
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(by_row), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(a).max() + 1e-9)


def test_a_touched_update_costs_what_was_read(rng):
    """Nothing the size of the table is made: neither a gradient nor a copy of it or of its moments."""
    model = small_model(memory=dataclasses.replace(MEMORY, num_keys=256, value_dim=128, layers=(0,)), dtype="float32")
    table = 256**2 * 128 * 4
    held = {}
    for update in ("dense", "touched"):
        run = dataclasses.replace(small_run(model, 2, 16), optimizer=optimizer(update))
        tx, _ = make_optimizer(run.optimizer, STEPS)
        step = make_train_step(run, VOCABULARY, one_device(), tx)
        state = jax.eval_shape(lambda tx=tx: init_state(model, tx, one_device(), 0))
        held[update] = step.lower(state, random_batch(rng, 2, 16)).compile().memory_analysis().temp_size_in_bytes
    assert held["touched"] < table / 4 < table <= held["dense"]


def test_training_with_a_memory_lowers_the_loss_and_moves_rows(rng):
    batch = random_batch(rng, 4, 24)
    for update in ("dense", "touched"):
        run = dataclasses.replace(small_run(small_model(memory=MEMORY), 4, 24), optimizer=optimizer(update))
        tx, _ = make_optimizer(run.optimizer, STEPS)
        state, losses = init_state(run.model, tx, one_device(), 0), []
        step = make_train_step(run, VOCABULARY, one_device(), tx)
        for _ in range(8):
            state, metrics = step(state, batch)
            losses.append(float(metrics["loss"][0] / metrics["loss"][1]))
        assert losses[-1] < losses[0] - 0.5
        assert float(metrics["values_grad_norm"][0]) > 0
        assert int(state.opt_state["values"].count) == 8
