"""A checksum an array, the same on every mesh: stored arrays carry none, so a flipped bit would load silently."""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}  # eight bytes are two words


def path_name(path: tuple) -> str:
    """`layers/0/attention/qkv` for a leaf's path."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def checksums(tree) -> dict[str, str]:
    """16 hexadecimal digits by leaf name; one element that differs in any bits always changes its array's.

    An array's is two sums modulo 2^32 of hashes of an element's bits and its place, so no order of summation matters:
    each device sums what it holds, before anything leaves it.
    """
    leaves, pairs = jax.tree_util.tree_leaves_with_path(tree), []
    for _, leaf in leaves:
        pairs.append(_compiled(getattr(leaf, "sharding", None))(leaf))
        if jax.default_backend() == "cpu":  # whose devices share threads: collectives of two programs could block both
            pairs[-1].block_until_ready()
    pairs = jax.device_get(pairs)
    return {path_name(path): f"{a:08x}{b:08x}" for (path, _), (a, b) in zip(leaves, pairs, strict=True)}


def json_checksum(content: Any) -> str:
    """The hexadecimal sha256 of what JSON keeps of `content`, whatever its spacing and order of keys."""
    kept = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@functools.cache
def _compiled(sharding: Sharding | None) -> Callable:
    """uint32[2] of one array, which every process of its mesh has; arrays of the same shape share a program."""
    out = NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None
    return jax.jit(lambda x: jnp.stack(_hashed(x)), out_shardings=out)


def _hashed(x) -> tuple[jax.Array, jax.Array]:
    bits = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(bits.shape):  # one axis at a time: flattening would gather a sharded array
        along = _mixed(jnp.arange(size, dtype=jnp.uint32) + jnp.uint32(0x9E3779B9 * (axis + 1) % 2**32))
        place = place + along.reshape(size, *[1] * (bits.ndim - 1 - axis))
    hashed = _mixed(bits + place)
    zero = jnp.uint32(0)
    # Both sums in one reduction: on a CPU XLA takes a twentieth of the time of two.
    return jax.lax.reduce(
        (hashed, hashed * (jnp.broadcast_to(place, bits.shape) | jnp.uint32(1))),
        (zero, zero),
        lambda a, b: (a[0] + b[0], a[1] + b[1]),
        range(bits.ndim),
    )


def _mixed(x: jax.Array) -> jax.Array:
    """A permutation of uint32 in which every bit depends on every other (the end of MurmurHash3)."""
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
