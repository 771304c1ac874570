"""Checkpoints: exact, on any mesh, aware of damage and of models of another shape."""

import dataclasses
import functools
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mot_jax.errors import CheckpointError
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.checksum import checksums

TX = optax.adamw(1e-2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    params: dict
    opt_state: object
    step: object


def make_state(step: int, width: int = 8) -> State:
    params = {"layers": {"0": {"w": jax.random.normal(jax.random.key(step), (16, width))}}, "gain": jnp.ones(width)}
    return State(params, TX.init(params), jnp.int32(step))


def abstract(state: State, mesh=None) -> State:
    def one(x):
        spec = PartitionSpec("a", "b") if x.ndim == 2 else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec) if mesh else None)

    return jax.tree.map(one, state)


def save(directory, *steps, width: int = 8):
    with Checkpoints(directory, keep=3) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step, width), {"0": {"at": step}}, {"loss": 0.1 * step})


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def largest_file(directory) -> str:
    files = [os.path.join(root, name) for root, _, names in os.walk(directory) for name in names]
    return max((f for f in files if "/d/" in f), key=os.path.getsize)


@pytest.mark.parametrize("shape", [(2, 4), (4, 1)])
def test_restores_exactly_on_another_mesh(tmp_path, shape):
    save(tmp_path / "c", 1, 2)
    devices = jax.devices()[: shape[0] * shape[1]]
    mesh = jax.make_mesh(shape, ("a", "b"), devices=devices, axis_types=(AxisType.Auto,) * 2)
    with Checkpoints(tmp_path / "c") as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0), mesh))
    assert_equal(restored.state, make_state(2))
    assert restored.state.params["layers"]["0"]["w"].sharding.mesh.shape == {"a": shape[0], "b": shape[1]}
    assert isinstance(restored.state.opt_state[0], optax.ScaleByAdamState)
    assert (restored.step, restored.data_state, restored.meta["loss"]) == (2, {"0": {"at": 2}}, 0.2)


def test_parameters_alone_and_a_chosen_step(tmp_path):
    save(tmp_path / "c", 1, 2)
    with Checkpoints(tmp_path / "c") as checkpoints:
        step, params = checkpoints.restore_params(abstract(make_state(0)).params, step=1)
        assert step == 1
        assert_equal(params, make_state(1).params)
        with pytest.raises(CheckpointError, match="no checkpoint of step 7; there are 1, 2"):
            checkpoints.restore_params(params, step=7)


def test_keeps_the_newest_and_replaces_an_abandoned_history(tmp_path):
    save(tmp_path / "c", 1, 2, 3, 4)
    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        assert checkpoints.steps() == [2, 3, 4]
        checkpoints.save(3, make_state(33), {}, {}, wait=True)
        assert checkpoints.steps() == [2, 3]
        assert_equal(checkpoints.restore(abstract(make_state(0))).state.params, make_state(33).params)


def test_a_save_survives_the_donation_of_what_it_saves(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def overwrite(state):
        return jax.tree.map(lambda x: x + 1, state)

    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        state = make_state(1, width=1024)
        checkpoints.save(1, state, {}, {})
        for _ in range(20):
            state = overwrite(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert_equal(checkpoints.restore(abstract(make_state(0, width=1024))).state, make_state(1, width=1024))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "meta", "missing"])
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, damage):
    save(tmp_path / "c", 1, 2, width=64)
    victim = largest_file(tmp_path / "c" / "2" / "params")
    content = pathlib.Path(victim).read_bytes()
    if damage == "truncated":
        pathlib.Path(victim).write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        pathlib.Path(victim).write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif damage == "meta":
        (tmp_path / "c" / "2" / "meta" / "metadata").write_text('{"format": 1, "arr')
    else:
        os.remove(victim)
    said = []
    with Checkpoints(tmp_path / "c", report=said.append) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0, 64)))
        assert restored.step == 1
        assert_equal(restored.state, make_state(1, 64))
        assert len(said) == 1
        assert "checkpoint 2 is damaged" in said[0]
        assert "\n" not in said[0]
        with pytest.raises(CheckpointError, match="checkpoint 2 is damaged"):
            checkpoints.restore(abstract(make_state(0, 64)), step=2)


def test_another_shape_is_an_error_that_names_the_parameter(tmp_path):
    save(tmp_path / "c", 1)
    with Checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(CheckpointError, match=r"parameter gain has shape \(8,\), the model expects \(9,\)"):
            checkpoints.restore(abstract(make_state(0, width=9)))
        with pytest.raises(CheckpointError, match="has no parameter other"):
            checkpoints.restore_params({"other": jnp.ones(3)})
        with pytest.raises(CheckpointError, match="layers/0/w is not part of the model"):
            checkpoints.restore_params({"gain": jnp.ones(8)})


def test_reading_where_there_is_nothing(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints here"):
        Checkpoints(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_checksums_do_not_depend_on_the_mesh_and_see_one_bit():
    state = make_state(1)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), state, abstract(state, mesh))
    assert checksums(state) == checksums(placed)
    w = np.array(state.params["layers"]["0"]["w"])
    for place in ((0, 0), (15, 7), (3, 5)):
        changed = w.copy()
        changed[place] = np.nextafter(changed[place], np.float32(9))
        assert checksums({"w": changed}) != checksums({"w": w})
    assert checksums({"w": w[::-1].copy()}) != checksums({"w": w})
