"""The mesh (data, fsdp, expert, tensor) and the shardings of parameters, optimizer state and batches on it."""

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mot_jax.config import RULES, Parallel, Rules
from mot_jax.config.rules import AXES, BATCH_AXES
from mot_jax.errors import ConfigError
from mot_jax.parallel.rules import partition_spec


def make_mesh(parallel: Parallel, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over `devices` (default: all); one axis may be -1 and takes what is left.

    Raises:
      ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(parallel, axis) for axis in AXES]
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ConfigError(
            f"Parallel: expected sizes of at least 1, at most one of them -1, got {dict(zip(AXES, sizes, strict=True))}"
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // math.prod(size for size in sizes if size != -1))
    if math.prod(sizes) != len(devices):
        product = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
        raise ConfigError(f"Parallel: {product} = {math.prod(sizes)}, but there are {len(devices)} devices")
    return jax.make_mesh(tuple(sizes), AXES, devices=devices, axis_types=(AxisType.Auto,) * len(AXES))


def shardings(shapes: dict, axes: dict, mesh: Mesh, rules: Rules = RULES) -> dict:
    """A NamedSharding for every parameter of a tree of shapes and its tree of logical axes.

    Raises:
      ConfigError: a mesh axis does not divide a parameter's dimension, or would divide two of them; names both.
    """

    def one(path, leaf, axes):
        name, along = "/".join(str(key.key) for key in path), {}
        for size, axis in zip(leaf.shape, axes, strict=True):
            mesh_axis = rules[axis]
            if mesh_axis is None:
                continue
            if size % mesh.shape[mesh_axis]:
                raise ConfigError(
                    f"Parallel.{mesh_axis}: {mesh.shape[mesh_axis]} does not divide {axis} = {size} of parameter "
                    f'{name}; Parallel.rules = {{"{axis}": None}} would leave it whole on each device'
                )
            if mesh_axis in along:
                raise ConfigError(
                    f"Parallel.rules: both {along[mesh_axis]} and {axis} of parameter {name} over {mesh_axis!r}; "
                    "expected another axis for one of them, or None"
                )
            along[mesh_axis] = axis
        return NamedSharding(mesh, partition_spec(axes, rules))

    return jax.tree_util.tree_map_with_path(one, shapes, axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all axes but tensor."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def like_parameters(tree, params, param_shardings, mesh: Mesh):
    """Shardings of a tree that holds copies of `params` (optimizer state): each leaf as the parameter it belongs to.

    A leaf belongs to the parameter whose path ends its own and whose shape it has; all others are replicated.
    """
    known = {
        tuple(map(str, path)): (leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(param_shardings), strict=True
        )
    }

    def one(path, leaf):
        path = tuple(map(str, path))
        for start in range(len(path)):
            shape, sharding = known.get(path[start:], (None, None))
            if shape == leaf.shape:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(one, tree)
