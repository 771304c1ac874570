"""What crosses devices, for code written for one device's rows; every function is a no-op without a manual mesh.

The loss and its gradient run inside one fully manual `shard_map`. A gradient taken there is that of the sum of all
devices' outputs, so a value that several devices hold in common is divided by their number before it is differentiated.
"""

import jax
from jaxtyping import Array


def axis_size(name: str | None) -> int:
    """Devices along a mesh axis; 1 along None and outside a manual mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[name] if name in mesh.manual_axes else 1


def sum_over(x, names: str | tuple[str, ...] | None):
    """Sum of a tree over mesh axes."""
    names = tuple(n for n in (names if isinstance(names, tuple) else (names,)) if axis_size(n) > 1)
    return jax.lax.psum(x, names) if names else x


def max_over(x: Array, name: str | None) -> Array:
    """Maximum over one mesh axis; carries no gradient."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, name) if axis_size(name) > 1 else x


def gather(x: Array, name: str | None, axis: int) -> Array:
    """Joins the shards of array axis `axis`; its gradient is a reduce-scatter."""
    return jax.lax.all_gather(x, name, axis=axis, tiled=True) if axis_size(name) > 1 else x


def shard_offset(name: str | None, shard_size: int) -> Array | int:
    """Index of this device's first entry along an axis split in shards of `shard_size`."""
    return jax.lax.axis_index(name) * shard_size if axis_size(name) > 1 else 0


def shard_index(names: tuple[str, ...]) -> Array | int:
    """This device's number along several mesh axes together; 0 outside a manual mesh."""
    split = tuple(name for name in names if axis_size(name) > 1)
    return jax.lax.axis_index(split) if split else 0
