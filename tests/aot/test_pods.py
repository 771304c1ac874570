"""The configs for pods: they divide over their meshes, and nothing in their step grows with S^2 or the pod's tokens."""

import math

import jax
import pytest

from kernels_pallas.ahead_of_time import missing
from mot_jax.aot.compile import abstract_batch, devices_of, resolved
from mot_jax.aot.topology import parse_target
from mot_jax.gin_config import configs_directory, load_run
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import abstract_state
from mot_jax.training.step import check_rows, make_train_step

PODS = {"mot_7b_v5p_512": "v5p:8x8x8", "moma_1.4b_v5e_256": "v5e:16x16", "memory_64m_v6e_256": "v6e:16x16"}
LENGTH = 3581  # a prime that no other size is a multiple of, so that what it divides counts tokens
BLOCKS = 3584  # the same, padded to blocks of attention


def shapes_in(jaxpr):
    """Of everything that a program makes, inner programs included."""
    for eqn in jaxpr.eqns:
        yield from (variable.aval.shape for variable in eqn.outvars if hasattr(variable.aval, "shape"))
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from shapes_in(inner)


def device_program(jaxpr):
    """What one device runs of loss and gradient."""
    return next(eqn for eqn in jaxpr.eqns if eqn.primitive.name == "shard_map").params["jaxpr"]


def test_there_are_no_others():
    assert {path.stem for path in (configs_directory() / "pods").glob("*.gin")} == set(PODS)


@pytest.mark.skipif(bool(missing("v5e")), reason=missing("v5e") or "")
@pytest.mark.parametrize("name", PODS)
def test_nothing_grows_with_the_pod(name):
    few = [
        "Model.num_layers=2",
        f"Data.sequence_length={LENGTH}",
        *(["Memory.layers=(1,)"] if "memory" in name else []),
    ]
    run, vocabulary = resolved(load_run([name], few)[0], lambda what, fraction: None)
    mesh = make_mesh(run.parallel, devices_of(parse_target(PODS[name])))
    assert run.data.global_batch_size >= mesh.size
    check_rows(run, mesh)
    tx, _ = make_optimizer(run.optimizer, run.train.steps)
    step = make_train_step(run, vocabulary, mesh, tx)
    traced = step.trace(abstract_state(run.model, tx, mesh), abstract_batch(run, mesh))
    rows = run.data.global_batch_size // mesh.size  # of a device; experts may hold each token several times
    found = list(shapes_in(device_program(traced.jaxpr.jaxpr)))
    assert any(LENGTH in shape for shape in found) and any(math.prod(shape) % LENGTH == 0 for shape in found)
    for shape in found:
        along = [size for size in shape if size % LENGTH == 0 or size % BLOCKS == 0]
        assert len(along) < 2, shape
        assert all(size <= 8 * rows * BLOCKS for size in along), shape
        assert all(size < run.data.global_batch_size * LENGTH for size in shape), shape
