"""8 devices on several meshes give one device's losses and gradients, and no collective moves all tokens."""

import dataclasses
import math
import re

import jax
import numpy as np
import optax
import pytest

from mot_jax.config import Block, FrozenMapping, Optimizer, Parallel, ValuesOptimizer, rules_with
from mot_jax.config.experts import AverageKey, Depth, ExpertChoice, TokenChoice
from mot_jax.config.memory import Memory
from mot_jax.errors import ConfigError
from mot_jax.nn import transformer
from mot_jax.parallel import value_exchange
from mot_jax.parallel.mesh import batch_sharding, make_mesh
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.state import abstract_state, init_state, parameter_shardings
from mot_jax.training.step import make_train_step
from tests.batches import ALL, VOCABULARY, random_batch, small_model, small_run

MESH = Parallel(data=2, fsdp=2, tensor=2)
EXPERTS = Parallel(data=2, expert=2, tensor=2)
ALL_AXES = Parallel(data=1, fsdp=2, expert=2, tensor=2)
OTHER_RULES = FrozenMapping({"embed": "expert", "ffn": "fsdp", "kv_heads": None})
ROWS, LENGTH, MODEL_DIM = 8, 47, 32
SGD = optax.sgd(1.0)  # the update is the gradient


def needs_eight_devices():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")


MOMA = {"untied": ("feed_forward",), "feed_forward": ExpertChoice(experts=2, noise=True), "selection_groups": 4}
DEEP_MOE = {
    "plan": (
        (1, (Block(depth=Depth(capacity=0.5, selection="batch"), feed_forward=TokenChoice(experts=4)),)),
        (1, (Block(feed_forward=AverageKey(experts=4, top_k=2)),)),
    ),
    "selection_groups": 4,
}

MEMORY = {"memory": Memory(layers=(0,), num_keys=8, heads=3, top_k=5, value_dim=256), "untied": ("feed_forward",)}


@pytest.mark.parametrize(
    ("fields", "accumulation", "meshes"),
    [
        ({}, 1, [MESH, dataclasses.replace(ALL_AXES, rules=OTHER_RULES)]),
        ({"untied": ALL}, 2, [MESH]),
        (MOMA, 2, [EXPERTS]),
        (DEEP_MOE, 1, [ALL_AXES]),
    ],
    ids=[
        "dense, also by other rules",
        "mot, accumulated",
        "moma with noise, accumulated, split experts",
        "depth over the batch, token choice, average key, split experts",
    ],
)
def test_eight_devices_equal_one(fields, accumulation, meshes, rng):
    needs_eight_devices()
    model = small_model(num_kv_heads=2, num_layers=1, **fields)
    run = small_run(model, ROWS, LENGTH, z_loss=1e-3, accumulation=accumulation)
    batch = random_batch(rng, ROWS, LENGTH)
    results = []
    for parallel in (Parallel(data=1), *meshes):
        run = dataclasses.replace(run, parallel=parallel)
        mesh = make_mesh(parallel, jax.devices()[: 8 if results else 1])
        before = init_state(run.model, SGD, mesh, 0, rules_with(parallel.rules))
        old = jax.device_get(before.params)
        after, metrics = make_train_step(run, VOCABULARY, mesh, SGD)(before, batch)
        results.append((jax.tree.map(lambda a, b: a - b, old, jax.device_get(after.params)), jax.device_get(metrics)))
    (grads, metrics), *others = results
    for sharded_grads, sharded_metrics in others:
        np.testing.assert_allclose(sharded_metrics["loss"], metrics["loss"], rtol=1e-5)
        leaves = jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(sharded_grads)
        for (path, a), b in zip(*leaves, strict=True):
            error = np.linalg.norm(a - b) / np.linalg.norm(a)
            assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error}"


@pytest.mark.parametrize(
    ("fields", "update"),
    [({}, "dense"), ({"shared": False, "gated": False, "value_dim": None}, "dense"), ({"layers": (0, 1)}, "touched")],
    ids=["Memory+", "plain", "two layers, touched rows"],
)
def test_tables_split_over_rows_and_columns_equal_one_device(fields, update, rng, monkeypatch):
    """Values move by AdamW with an epsilon that hides no error."""
    needs_eight_devices()
    monkeypatch.setattr(value_exchange, "GROUP_TOKENS", 64)  # 3 exchanges of a device's 94 tokens
    memory = dataclasses.replace(MEMORY["memory"], **fields)
    dim = 256 if memory.value_dim is None else 32
    layers = len(memory.layers)
    sizes = {"dim": dim, "num_layers": layers, "num_kv_heads": 2, "dtype": "float32"}
    model = small_model(**{**MEMORY, "memory": memory, **sizes})
    run = small_run(model, ROWS, LENGTH)
    own = ValuesOptimizer(learning_rate=1.0, clip_norm=0.0, update=update)
    run = dataclasses.replace(run, optimizer=Optimizer(epsilon=1.0, warmup_steps=0, values=own))
    batch, results = random_batch(rng, ROWS, LENGTH), []
    for mesh in (make_mesh(Parallel(), jax.devices()[:1]), make_mesh(MESH)):
        state = init_state(run.model, SGD, mesh, 0)
        old = jax.device_get(state.params)
        state, metrics = make_train_step(run, VOCABULARY, mesh, SGD)(state, batch)
        held = {shard.data.shape for table in state.params["values"].values() for shard in table.addressable_shards}
        results.append((jax.tree.map(lambda a, b: a - b, old, jax.device_get(state.params)), jax.device_get(metrics)))
    assert held == {(32, 1, 128)}  # of 64 rows of 256
    (moved, metrics), (sharded, sharded_metrics) = results
    for name in ("loss", "values_grad_norm", "grad_norm"):
        np.testing.assert_allclose(sharded_metrics[name], metrics[name], rtol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(moved), jax.tree.leaves(sharded), strict=True):
        error = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error}"


def test_a_split_table_is_never_whole_on_a_device(rng):
    """Nothing in the compiled step has all rows or all columns of the table, and no collective moves a shard of it."""
    needs_eight_devices()
    memory = dataclasses.replace(MEMORY["memory"], num_keys=64)  # 4,096 rows, more than there are tokens to exchange
    run = small_run(small_model(**{**MEMORY, "memory": memory, "num_kv_heads": 2}), ROWS, LENGTH)
    mesh = make_mesh(MESH)
    state = abstract_state(run.model, SGD, mesh)
    hlo = make_train_step(run, VOCABULARY, mesh, SGD).lower(state, random_batch(rng, ROWS, LENGTH)).compile().as_text()
    assert re.search(r"f32\[2048,(1,)?128\]", hlo)  # a shard
    assert not re.search(r"f32\[4096,", hlo) and not re.search(r"f32\[2048,(2,128|256)\]", hlo)
    moving = [(op, shape) for op, shape in collective_shapes(hlo) if 2048 in shape]
    assert {op for op, _ in moving} <= {"all-reduce"}, moving  # of gradients, over the copies along `data`


def collective_shapes(hlo: str) -> list[tuple[str, tuple[int, ...]]]:
    """(operation, result shape) of every collective in compiled HLO, those inside tuples included."""
    found = []
    for line in hlo.splitlines():
        match = re.search(
            r"= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute)(-start)?\(", line
        )
        if match:
            for dims in re.findall(r"\w+\[([\d,]*)\]", match[1]):
                found.append((match[2], tuple(int(d) for d in dims.split(",") if d)))
    return found


def moves_tokens(name: str, shape: tuple[int, ...], rows: int, length: int) -> bool:
    """Whether a collective of this shape carries hidden states or ids of more rows than one device has.

    LENGTH is a prime that no parameter has, so any size that it divides counts tokens. Sums over the tensor axis carry
    a device's own rows; nothing else may carry rows at all.
    """
    tokens = math.prod(size for size in shape if size % length == 0)
    if tokens == 1:
        return False
    return name != "all-reduce" or math.prod(shape) > rows * length * MODEL_DIM


@pytest.mark.parametrize("name", ["the step", "a layout over the global batch"])
def test_no_collective_over_the_global_tokens(name):
    needs_eight_devices()
    model = small_model(untied=ALL, num_layers=1)
    run = small_run(model, ROWS, LENGTH)
    mesh = make_mesh(MESH)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)),
        random_batch(np.random.default_rng(0), ROWS, LENGTH),
    )
    if name == "the step":
        state = abstract_state(model, SGD, mesh)
        lowered = make_train_step(run, VOCABULARY, mesh, SGD).lower(state, batch)
    else:  # what the compiler makes of the same forward pass without the manual mesh
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            transformer.abstract(model),
            parameter_shardings(model, mesh),
        )
        lowered = jax.jit(lambda params, batch: transformer.apply(model, params, batch)[0]).lower(params, batch)
    shapes = collective_shapes(lowered.compile().as_text())
    assert shapes
    local_rows = ROWS // 4
    moved = [(kind, shape) for kind, shape in shapes if moves_tokens(kind, shape, local_rows, LENGTH)]
    assert bool(moved) == (name != "the step"), moved


def test_experts_exchange_a_set_number_of_tokens():
    """Over four devices as many as over two with the same rows each: what one has of its own, and a quarter."""
    needs_eight_devices()
    exchanged = []
    for devices in (2, 4):
        model = small_model(feed_forward=TokenChoice(experts=4), num_layers=1, selection_groups=4)
        rows = 2 * devices
        run, mesh = small_run(model, rows, LENGTH), make_mesh(Parallel(expert=devices, data=1), jax.devices()[:devices])
        batch = jax.tree.map(
            lambda x, mesh=mesh: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)),
            random_batch(np.random.default_rng(0), rows, LENGTH),
        )
        step = make_train_step(run, VOCABULARY, mesh, SGD).lower(abstract_state(model, SGD, mesh), batch)
        shapes = collective_shapes(step.compile().as_text())
        stack = (4, MODEL_DIM, 48)
        assert not [shape for _, shape in shapes if shape in (stack, stack[::-1])]  # and no stack travels
        others = [(kind, shape) for kind, shape in shapes if kind != "all-to-all"]
        assert not [found for found in others if moves_tokens(*found, 2, LENGTH)]
        # A CPU's all-to-all has an operand for each device.
        exchanged.append(max(math.prod(shape) * devices for kind, shape in shapes if kind == "all-to-all"))
    assert exchanged[0] <= 1.25 * 2 * 2 * LENGTH * MODEL_DIM + 2 * MODEL_DIM
    assert exchanged[1] <= exchanged[0] + 4 * MODEL_DIM


def test_a_checkpoint_of_one_mesh_is_restored_on_another(tmp_path):
    """Parameters and moments, bit for bit: of experts split over an axis, of others, and on one device."""
    needs_eight_devices()
    model, tx = small_model(num_kv_heads=2, num_layers=1, **MOMA), optax.adam(1e-2)
    state = init_state(model, tx, make_mesh(ALL_AXES), 0)
    state = dataclasses.replace(state, opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))
    meshes = [
        (make_mesh(Parallel(data=4, expert=2)), {}),
        (make_mesh(ALL_AXES), {"embed": "expert", "expert": "fsdp"}),
        (make_mesh(Parallel(data=1), jax.devices()[:1]), {}),
    ]
    with Checkpoints(tmp_path / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(0, state, {}, {}, wait=True)
        for mesh, rules in meshes:
            restored = checkpoints.restore(abstract_state(model, tx, mesh, rules_with(rules))).state
            for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True):
                assert b.sharding.mesh == mesh
                np.testing.assert_array_equal(a, b)


def test_sharded_moments_are_updated_as_one_devices(rng):
    needs_eight_devices()
    tx = optax.adam(1e-2)
    run = small_run(small_model(num_layers=1), ROWS, LENGTH)
    batches = [random_batch(rng, ROWS, LENGTH) for _ in range(2)]
    results = []
    for mesh in (make_mesh(Parallel(), jax.devices()[:1]), make_mesh(MESH)):
        state, step = init_state(run.model, tx, mesh, 0), make_train_step(run, VOCABULARY, mesh, tx)
        for batch in batches:
            state, _ = step(state, batch)
        results.append(jax.device_get(state.opt_state))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * np.abs(a).max())


def test_an_axis_that_does_not_divide_is_named():
    needs_eight_devices()
    with pytest.raises(
        ConfigError, match=r"Parallel\.tensor: 8 does not divide kv_heads = 4 of parameter layers.0.attention"
    ):
        parameter_shardings(small_model(), make_mesh(Parallel(tensor=8)))
    with pytest.raises(ConfigError, match="fsdp 3 x expert 1 x tensor 1 = 6, but there are 8 devices"):
        make_mesh(Parallel(fsdp=3))
    experts = small_model(feed_forward=TokenChoice(experts=6))
    with pytest.raises(
        ConfigError, match=r"expert: 4 does not divide expert = 6 of parameter layers.0.*\"expert\": None"
    ):
        parameter_shardings(experts, make_mesh(Parallel(expert=4)))
    parameter_shardings(experts, make_mesh(Parallel(expert=4)), rules_with({"expert": None}))
    with pytest.raises(ConfigError, match="both ffn and embed of parameter layers/0/feed_forward/down over 'fsdp'"):
        parameter_shardings(small_model(), make_mesh(MESH), rules_with({"ffn": "fsdp"}))
