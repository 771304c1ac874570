"""Compiling for accelerators that are not there: libtpu's compiler and XLA's for CUDA run on any Linux machine.

`pip install -e '.[compile]'` brings both. Set JAX_PLATFORMS=cpu, or jax looks for the hardware first.
"""

import importlib.util
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

TPU_TOPOLOGIES = {
    "v4": "v4:2x2x1",
    "v5e": "v5e:2x2",
    "v5p": "v5p:2x2x1",
    "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}
TARGETS = (*TPU_TOPOLOGIES, "h100")


def missing(target: str) -> str | None:
    """What has to be installed before `compile_for(target, ...)` can work, or None."""
    package = "jax_plugins.xla_cuda13" if target == "h100" else "libtpu"
    try:
        found = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        found = None
    return None if found else f"{package} is not installed: pip install -e '.[compile]'"


def compile_for(
    target: str, function: Callable, *arguments: PyTree[jax.ShapeDtypeStruct]
) -> tuple[jax.stages.Compiled, jax.stages.Traced]:
    """`jax.jit(function)` for one chip of the target, called with arrays of these shapes, and its trace.

    Raises:
      ValueError: the target is unknown.
      ModuleNotFoundError: its compiler is not installed.
      jax.errors.JaxRuntimeError: it does not compile.
    """
    if target not in TARGETS:
        raise ValueError(f"target: got {target!r}, expected one of {', '.join(TARGETS)}")
    if reason := missing(target):
        raise ModuleNotFoundError(reason)
    described = gpu_topology() if target == "h100" else tpu_topology(TPU_TOPOLOGIES[target])
    mesh = Mesh(np.array(described.devices[:1]), ("chip",))
    one_chip = NamedSharding(mesh, PartitionSpec())
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one_chip), arguments)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # tells kernels which chip they are traced for
        traced = jax.jit(function).trace(*shapes)
        return traced.lower().compile(), traced


def gpu_topology() -> topologies.TopologyDescription:
    """One H100."""
    jax.devices()  # registers the CUDA plugin
    config = (pathlib.Path(__file__).parent / "h100.txtpb").read_text()
    return topologies.get_topology_desc(platform="cuda", target_config=config, topology="1x1x1")


def tpu_topology(name: str) -> topologies.TopologyDescription:
    """A slice of a pod, as in `v5e:16x16` or `v5p:8x8x8`; raises jax.errors.JaxRuntimeError for one that is none."""
    # A TPU machine's own settings are not asked for, and another process may compile at the same time.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    alone = {"chips_per_host_bounds": [1, 1, 1]} if name.endswith(":1x1") else {}
    return topologies.get_topology_desc(platform="tpu", topology_name=name, **alone)
