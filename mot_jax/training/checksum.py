"""A checksum a parameter, the same on every mesh: stored arrays carry none, so a flipped bit would load silently."""

import jax
import jax.numpy as jnp

BITS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def path_name(path: tuple) -> str:
    """`layers/0/attention/qkv` for a leaf's path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def checksums(tree) -> dict[str, int]:
    """uint32 by leaf name: a position-weighted sum of the bits modulo 2^32, so no order of summation matters."""
    values = jax.device_get(_checksums(tree))
    return {path_name(path): int(value) for path, value in jax.tree_util.tree_leaves_with_path(values)}


@jax.jit
def _checksums(tree):
    return jax.tree.map(_checksum, tree)


def _checksum(x):
    bits = jax.lax.bitcast_convert_type(x, BITS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):  # one axis at a time: flattening would gather a sharded array
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    weight = place * jnp.uint32(2654435761) | jnp.uint32(1)
    return jnp.sum((bits + jnp.uint32(1)) * weight, dtype=jnp.uint32)
