"""The full-vocabulary table that turns ids into vectors and, tied or as a second one, vectors into logits."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mot_jax.nn.parameters import split_over, use, weight
from mot_jax.parallel.collectives import shard_offset, sum_over


class Embedding(nnx.Module):
    """A table [V, D], split by vocabulary."""

    def __init__(self, vocab_size: int, dim: int, rngs: nnx.Rngs):
        self.table = weight(rngs, (vocab_size, dim), ("vocab", "embed"), std=dim**-0.5)

    def __call__(self, tokens: Int[Array, "B S"], dtype: jnp.dtype) -> Float[Array, "B S D"]:
        table, axis = use(self.table, dtype), split_over(self.table, "vocab")
        local = tokens - shard_offset(axis, table.shape[0])
        held = (local >= 0) & (local < table.shape[0])
        x = jnp.take(table, jnp.where(held, local, 0), axis=0)
        return sum_over(jnp.where(held[..., None], x, 0), axis)
