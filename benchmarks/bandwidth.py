"""How fast this machine reads memory: the floor of what has more bytes to read than sums to do."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ROWS = 64


def memory_reader() -> tuple[Callable[[], jax.Array], int]:
    """A call that sums float32 numbers in order, and their bytes: 256 MiB, many times any cache; 2 GiB beside a CPU."""
    large = jnp.ones((ROWS, 2**20 if jax.default_backend() == "cpu" else 2**23), jnp.float32)
    add = jax.jit(lambda x: jnp.sum(x, axis=1))
    return lambda: add(large), large.nbytes
