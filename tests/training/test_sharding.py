"""8 devices (data 2, fsdp 2, tensor 2) give one device's losses and gradients, and no collective moves all tokens."""

import math
import re

import jax
import numpy as np
import optax
import pytest

from mot_jax.config import Parallel
from mot_jax.errors import ConfigError
from mot_jax.parallel.mesh import batch_sharding, make_mesh
from mot_jax.training.state import abstract_state, init_state, parameter_shardings
from mot_jax.training.step import make_train_step
from tests.batches import ALL, VOCABULARY, random_batch, small_model, small_run

MESH = Parallel(data=2, fsdp=2, tensor=2)
ROWS, LENGTH = 8, 48
SGD = optax.sgd(1.0)  # the update is the gradient


def needs_eight_devices():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")


@pytest.mark.parametrize("untied", [(), ALL], ids=["dense", "mot"])
def test_eight_devices_equal_one(untied, rng):
    needs_eight_devices()
    run = small_run(small_model(untied=untied, num_kv_heads=2, num_layers=1), ROWS, LENGTH, z_loss=1e-3)
    batch = random_batch(rng, ROWS, LENGTH)
    results = []
    for mesh in (make_mesh(Parallel(), jax.devices()[:1]), make_mesh(MESH)):
        before = init_state(run.model, SGD, mesh, 0)
        old = jax.device_get(before.params)
        after, metrics = make_train_step(run, VOCABULARY, mesh, SGD)(before, batch)
        results.append((jax.tree.map(lambda a, b: a - b, old, jax.device_get(after.params)), jax.device_get(metrics)))
    (grads, metrics), (sharded_grads, sharded_metrics) = results
    np.testing.assert_allclose(sharded_metrics["loss"], metrics["loss"], rtol=1e-5)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(sharded_grads), strict=True):
        error = np.linalg.norm(a - b) / np.linalg.norm(a)
        assert error < 1e-5, f"{jax.tree_util.keystr(path)}: {error}"


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


def test_no_collective_over_the_global_tokens():
    needs_eight_devices()
    model = small_model(untied=ALL, num_layers=1)
    run = small_run(model, ROWS, LENGTH)
    mesh = make_mesh(MESH)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh)),
        random_batch(np.random.default_rng(0), ROWS, LENGTH),
    )
    step = make_train_step(run, VOCABULARY, mesh, SGD)
    shapes = collective_shapes(step.lower(abstract_state(model, SGD, mesh), batch).compile().as_text())
    assert {"all-gather", "all-reduce"} <= {name for name, _ in shapes}
    tokens = ROWS * LENGTH
    # Weights may travel; rows may not. No parameter here has as many entries along one axis as there are tokens.
    for name, shape in shapes:
        assert all(size < tokens // 2 for size in shape) or math.prod(shape) < tokens, (name, shape)
        assert shape[:2] != (ROWS, LENGTH), (name, shape)


def test_an_axis_that_does_not_divide_is_named():
    needs_eight_devices()
    with pytest.raises(
        ConfigError, match=r"Parallel\.tensor: 8 does not divide kv_heads = 4 of parameter layers.0.attention"
    ):
        parameter_shardings(small_model(), make_mesh(Parallel(tensor=8)))
    with pytest.raises(ConfigError, match="fsdp 3 x expert 1 x tensor 1 = 6, but there are 8 devices"):
        make_mesh(Parallel(fsdp=3))
