"""Where a model generates: on one device that holds all of it, else on the mesh that it is split over."""

import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding

from mot_jax.config import Model, Rules
from mot_jax.config.frozen import FrozenMapping
from mot_jax.config.rules import AXES, RULES
from mot_jax.nn import transformer
from mot_jax.training.table_memory import device_bytes

SHARE = 0.5  # of a device's memory that parameters may take; the rest is for caches, and for a run that goes on


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and what is split over which of its axes."""

    mesh: Mesh
    rules: Rules


def placement_of(model: Model, params: dict) -> Placement | None:
    """What the parameters' own shardings say; None unless all lie on one mesh of training by one table."""
    leaves = [leaf.sharding if isinstance(leaf, jax.Array) else None for leaf in jax.tree.leaves(params)]
    if not all(isinstance(sharding, NamedSharding) for sharding in leaves):
        return None
    mesh = leaves[0].mesh
    if mesh.axis_names != AXES or mesh.size == 1 or any(sharding.mesh != mesh for sharding in leaves):
        return None
    found = dict.fromkeys(RULES)
    names = jax.tree.leaves(transformer.logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple))
    for axes, sharding in zip(names, leaves, strict=True):
        found |= {axis: mesh_axis for axis, mesh_axis in zip(axes, sharding.spec, strict=False) if axis}
    rules = FrozenMapping(found)
    specs = jax.tree.leaves(transformer.partition_specs(model, rules))
    agree = all(
        sharding.is_equivalent_to(NamedSharding(mesh, spec), len(axes))
        for axes, sharding, spec in zip(names, leaves, specs, strict=True)
    )
    return Placement(mesh, rules) if agree else None


def fits_one_device(params: dict) -> bool:
    """Whether the first device has room for all parameters; taken for granted where it does not tell."""
    leaves = jax.tree.leaves(params)
    if any(isinstance(leaf, jax.Array) and not leaf.is_fully_addressable for leaf in leaves):
        return False
    room = device_bytes(one_device(params))
    return room is None or sum(leaf.nbytes for leaf in leaves) <= SHARE * room


def one_device(params: dict) -> jax.Device:
    """The first of the devices that hold the parameters."""
    leaf = jax.tree.leaves(params)[0]
    held = leaf.devices() if isinstance(leaf, jax.Array) else jax.local_devices()
    return min(held, key=lambda device: device.id)
