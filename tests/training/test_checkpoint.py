"""Checkpoints: exact, on any mesh, aware of damage and of models of another shape."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mot_jax.errors import CheckpointError
from mot_jax.training import checksum
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.checksum import checksums, json_checksum

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


def replace(file: pathlib.Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("truncated", "params cannot be read: "),
        ("flipped", "params: layers/0/w differs from its checksum"),
        ("meta", "meta cannot be read: "),
        ("a digit of meta", "meta differs from its checksum"),
        ("a digit of the data's state", "data differs from its checksum"),
        ("format", "meta differs from its checksum"),
        ("missing", "params cannot be read: "),
        ("half deleted", "opt cannot be read: "),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path, capfd, damage, named):
    save(tmp_path / "c", 1, 2, width=64)
    place = tmp_path / "c" / "2"
    victim = largest_file(tmp_path / "c" / "2" / "params")
    content = pathlib.Path(victim).read_bytes()
    if damage == "truncated":
        pathlib.Path(victim).write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        middle = len(content) // 2
        pathlib.Path(victim).write_bytes(content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :])
    elif damage == "meta":
        (place / "meta" / "metadata").write_text('{"format": 1, "arr')
    elif damage == "a digit of meta":
        replace(place / "meta" / "metadata", b'"loss": 0.2', b'"loss": 0.3')
    elif damage == "a digit of the data's state":
        replace(place / "data" / "metadata", b'"at": 2', b'"at": 3')
    elif damage == "format":
        replace(place / "meta" / "metadata", b'"format": 2', b'"format": 3')
    elif damage == "half deleted":
        shutil.rmtree(place / "opt")
    else:
        os.remove(victim)
    said = []
    with Checkpoints(tmp_path / "c", report=said.append) as checkpoints:
        restored = checkpoints.restore(abstract(make_state(0, 64)))
        assert restored.step == 1
        assert_equal(restored.state, make_state(1, 64))
        assert len(said) == 1
        assert f"checkpoint 2 is damaged ({named}" in said[0]
        assert "\n" not in said[0]
        with pytest.raises(CheckpointError, match="checkpoint 2 is damaged"):
            checkpoints.restore(abstract(make_state(0, 64)), step=2)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="limits")
def test_a_disk_that_is_full_is_one_line_and_costs_no_checkpoint(tmp_path, capfd):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path / "c", keep=3) as checkpoints:
        checkpoints.save(1, make_state(1), {}, {}, wait=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))  # a file that grows larger fails
        try:
            with pytest.raises(
                CheckpointError, match=r"could not be written \(.*\); the newest complete one is of step 1"
            ):
                checkpoints.save(2, make_state(2, 8192), {}, {}, wait=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert checkpoints.steps() == [1]
        checkpoints.save(3, make_state(3), {}, {})
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [1, 3]
        assert_equal(checkpoints.restore(abstract(make_state(0))).state, make_state(3))
    assert "Traceback" not in capfd.readouterr().err


def test_arrays_are_checked_as_they_are_stored_and_then_converted(tmp_path):
    save(tmp_path / "c", 1)
    asked = {"layers": {"0": {"w": jax.ShapeDtypeStruct((16, 8), jnp.bfloat16)}}, "gain": jnp.ones(8)}
    with Checkpoints(tmp_path / "c") as checkpoints:
        _, params = checkpoints.restore_params(asked)
        assert_equal(params["layers"]["0"]["w"], make_state(1).params["layers"]["0"]["w"].astype(jnp.bfloat16))
        with pytest.raises(CheckpointError, match="parameter gain is float32, the model expects int32"):
            checkpoints.restore_params({**asked, "gain": jnp.ones(8, jnp.int32)})


@pytest.mark.parametrize("sealed", [True, False])
def test_another_format_is_refused(sealed, tmp_path):
    save(tmp_path / "c", 1, 2)
    file = tmp_path / "c" / "2" / "meta" / "metadata"
    other = {name: value for name, value in json.loads(file.read_text()).items() if name != "checksum"} | {"format": 3}
    file.write_text(json.dumps(other | ({"checksum": json_checksum(other)} if sealed else {})))
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(CheckpointError, match="has format 3, expected 2"):
        checkpoints.restore(abstract(make_state(0)))


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


def test_changes_that_an_ordinary_sum_cancels_are_seen(rng):
    w = rng.standard_normal((6, 4)).astype(np.float32)
    signs = w.copy()
    signs[(0, 3), (1, 2)] *= -1
    assert checksums({"w": signs}) != checksums({"w": w})
    for dtype in (jnp.bfloat16, np.float16, np.uint8, np.int32):
        ones = np.ones((3, 5), dtype)
        seen = {checksums({"w": ones})["w"]}
        for place in np.ndindex(3, 5):  # equal changes at every pair of places
            for other in np.ndindex(3, 5):
                changed = ones.copy()
                changed[place], changed[other] = 3, 7
                seen.add(checksums({"w": changed})["w"])
        assert len(seen) == 1 + 15 * 15


def test_sharded_arrays_are_not_gathered_for_their_checksums():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x = jax.device_put(jnp.ones((64, 128)), NamedSharding(mesh, PartitionSpec("a", "b")))
    text = checksum._compiled(x.sharding).lower(x).compile().as_text()
    gathered = [
        line for line in text.splitlines() if re.search(r"all-gather\(|all-to-all\(|collective-permute\(", line)
    ]
    sizes = [[int(n) for n in re.search(r"= \(?\w+\[([\d,]*)\]", line)[1].split(",") if n] for line in gathered]
    assert all(np.prod(size) <= mesh.size for size in sizes)
    assert checksums([x]) == checksums([np.asarray(x)])
