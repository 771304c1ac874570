"""Runs with memory layers: stopped and resumed they equal one never stopped; their tables start other runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax.config import Optimizer, Parallel, ValuesOptimizer
from mot_jax.config.experts import ExpertChoice
from mot_jax.config.memory import Memory
from mot_jax.errors import CheckpointError
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.init_from import init_from
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.run_directory import CHECKPOINTS
from mot_jax.training.state import abstract_state, fresh_state, init_state
from mot_jax.training.step import make_train_step
from tests.batches import VOCABULARY, random_batch, small_model, small_run

STEPS = 6
MEMORY = Memory(layers=(0,), num_keys=8, heads=2, top_k=4)


def memory_run(dtype: str, update: str = "dense", **train):
    model = small_model(num_layers=1, memory=dataclasses.replace(MEMORY, dtype=dtype))
    optimizer = Optimizer(warmup_steps=1, values=ValuesOptimizer(learning_rate=0.05, update=update))
    return dataclasses.replace(small_run(model, 8, 24, steps=STEPS, **train), optimizer=optimizer)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(("update", "dtype", "devices"), [("touched", "bfloat16", 1), ("dense", "bfloat16", 2)])
def test_a_resumed_run_equals_one_never_stopped(tmp_path, rng, update, dtype, devices):
    run = memory_run(dtype, update)
    mesh = make_mesh(Parallel(fsdp=devices), jax.devices()[:devices])
    tx, _ = make_optimizer(run.optimizer, STEPS)
    step = make_train_step(run, VOCABULARY, mesh, tx)
    batches = [random_batch(rng, 8, 24) for _ in range(STEPS)]
    state, losses = init_state(run.model, tx, mesh, 0), []
    for number, batch in enumerate(batches):
        if number == STEPS // 2:
            with Checkpoints(tmp_path / "c", keep=1) as checkpoints:
                checkpoints.save(number, state, {}, {})
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"][0]))

    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(abstract_state(run.model, tx, mesh))
    resumed, again = restored.state, []
    table = resumed.params["values"]["shared"]
    assert table.dtype == dtype and np.asarray(resumed.opt_state["values"].first["values"]["shared"]).any()
    for batch in batches[restored.step :]:
        resumed, metrics = step(resumed, batch)
        again.append(float(metrics["loss"][0]))
    assert again == losses[restored.step :]
    assert_same(resumed, state)
    assert not np.array_equal(resumed.params["values"]["shared"], table)  # so the moments of the tables mattered


def test_tables_start_another_run_in_its_own_dtype(tmp_path):
    run, mesh = memory_run("float32"), make_mesh(Parallel(), jax.devices()[:1])
    tx, _ = make_optimizer(run.optimizer, STEPS)
    state = init_state(run.model, tx, mesh, 3)
    source, params = str(tmp_path / "run"), state.params
    with Checkpoints(tmp_path / "run" / CHECKPOINTS, keep=1) as checkpoints:
        checkpoints.save(1, state, {"0": {"at": 1}}, {})
    started, step, _, data_state = init_from(source, run.model, mesh, 0)
    assert (step, data_state) == (1, {"0": {"at": 1}})
    assert_same(started, params)
    narrow = memory_run("bfloat16").model
    rounded, *_ = init_from(source, narrow, mesh, 0)
    table = rounded["values"]["shared"]
    assert table.dtype == jnp.bfloat16 and table.sharding.spec == params["values"]["shared"].sharding.spec
    assert_same(table, params["values"]["shared"].astype(jnp.bfloat16))
    assert_same({**rounded, "values": None}, {**params, "values": None})
    with Checkpoints(tmp_path / "narrow" / CHECKPOINTS, keep=1) as checkpoints:
        checkpoints.save(1, fresh_state(rounded, tx), {}, {})
    widened, *_ = init_from(str(tmp_path / "narrow"), run.model, mesh, 0)
    assert widened["values"]["shared"].dtype == jnp.float32
    assert_same(widened["values"]["shared"], table.astype(jnp.float32))
    larger = small_model(num_layers=1, memory=dataclasses.replace(MEMORY, num_keys=16))
    with pytest.raises(CheckpointError, match=r"memory/keys has shape \(2, 2, 8, 8\), expected \(2, 2, 16, 8\)"):
        init_from(source, larger, mesh, 0)


def test_frozen_tables_have_no_moments(rng):
    experts = ExpertChoice(experts=2)
    memory = dataclasses.replace(MEMORY, layers=(1,))
    model = small_model(memory=memory, feed_forward=experts, untied=("feed_forward",), auxiliary_routers=True)
    run = small_run(model, 8, 24, steps=STEPS, only="auxiliary_routers")
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    tx, _ = make_optimizer(run.optimizer, STEPS, run.train.only)
    state = abstract_state(model, tx, mesh, only=run.train.only)
    table = state.params["values"]["shared"]
    assert "values" not in state.opt_state
    assert all(leaf.shape != table.shape for leaf in jax.tree.leaves(state.opt_state))
    step = make_train_step(run, VOCABULARY, mesh, tx)
    after, _ = jax.eval_shape(step, state, random_batch(rng, 8, 24))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    moments = jax.tree.leaves(abstract_state(model, make_optimizer(run.optimizer, STEPS)[0], mesh).opt_state)
    assert sum(leaf.shape == table.shape for leaf in moments) == 2
