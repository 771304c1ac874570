"""A memory layer: product-key queries into a table of values (Memory+, arXiv 2412.09764, section 3)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from kernels_pallas.product_key import product_key_topk
from mot_jax.config import Model, group_names
from mot_jax.config.memory import key_dim, value_dim
from mot_jax.nn.context import Context
from mot_jax.nn.norm import Norm, unit
from mot_jax.nn.parameters import grouped, split_over, uniform, use, weight
from mot_jax.nn.report import Report, nothing
from mot_jax.nn.rows import Rows, project
from mot_jax.parallel.collectives import gather, shard_offset, sum_over


class Memory(nnx.Module):
    """query [D, H d], keys [H, 2, R, d / 2]; gated also gate [D, Dv] and down [Dv, D].

    With `groups` each has a leading axis of them. Queries and keys are normalised with qk_norm, and their product is
    then divided by the root of its width, as in attention.
    """

    def __init__(self, model: Model, groups: int | None, output_std: float, rngs: nnx.Rngs):
        memory = model.memory
        self.mine = None  # all groups
        if memory.modalities is not None:
            groups, names = None, group_names(model)
            self.mine = tuple(names.index(name) for name in memory.modalities)
        dim, width = model.dim, value_dim(memory, model.dim)
        key_width = key_dim(memory, dim)
        self.memory, self.half, self.epsilon = memory, key_width // 2, model.norm_epsilon
        self.width = width
        queries, keys = memory.heads * key_width, (memory.heads, 2, memory.num_keys, self.half)
        # Xavier's bound, and that of the paper's implementation for keys.
        self.query = uniform(rngs, *grouped(groups, (dim, queries), ("embed", None)), (6 / (dim + queries)) ** 0.5)
        self.keys = uniform(rngs, *grouped(groups, keys, (None, None, None, "embed")), key_width**-0.5)
        if memory.qk_norm:
            self.query_norm = Norm(self.half, "rms", model.norm_epsilon, groups)
            self.key_norm = Norm(self.half, "rms", model.norm_epsilon, groups)
        if memory.gated:
            self.gate = weight(rngs, *grouped(groups, (dim, width), ("embed", "ffn")), std=dim**-0.5)
            self.down = weight(rngs, *grouped(groups, (width, dim), ("ffn", "embed")), std=output_std * width**-0.5)

    def __call__(self, x: Float[Array, "P D"], rows: Rows, context: Context) -> tuple[Float[Array, "P D"], Report]:
        """What the memory adds, and which values it read with which weights: num_values for those of no token."""
        scores, found = self._best(x, rows)
        weights = jax.nn.softmax(scores, axis=-1)  # of each head
        real = rows.real[:, None]
        if self.mine is not None:
            real = jnp.sum(rows.owner[:, list(self.mine)], axis=1, keepdims=True) > 0
        reads = jnp.where(real, _flat(found), self.memory.num_values), jnp.where(real, _flat(weights), 0.0)
        y = context.recall(context.layer, *reads).astype(x.dtype)
        report = dataclasses.replace(nothing(), reads=reads)
        if not self.memory.gated:
            return _columns(y, self.width), report  # zero where nothing was read
        gate, down = use(self.gate, x.dtype), use(self.down, x.dtype)
        y = _columns(y, gate.shape[-1])
        gated = (y * jax.nn.silu(project(rows, x, gate).astype(jnp.float32))).astype(x.dtype)
        return sum_over(project(rows, gated, down), split_over(self.down, "ffn")), report

    def _best(self, x, rows: Rows) -> tuple[Float[Array, "P H k"], Int[Array, "P H k"]]:
        """Scores, float32, and numbers of the best keys."""
        queries = project(rows, x, use(self.query, x.dtype)).reshape(-1, self.memory.heads, 2, self.half)
        keys = use(self.keys, jnp.dtype("float32"))
        if self.memory.qk_norm:
            queries = self.query_norm(queries, rows)
            gain = self.key_norm.gain[...] * self.half**-0.5
            keys = unit(keys, self.epsilon) * (gain if keys.ndim == 4 else gain[:, None, None, None])
        keys = keys.astype(x.dtype)
        if keys.ndim == 4:
            return product_key_topk(queries, keys, self.memory.top_k)
        # Rows are in group order, a tile of one group's.
        tiles = queries.reshape(-1, rows.layout.tile, *queries.shape[1:])

        @jax.checkpoint  # else a copy of its group's keys would be kept for every tile
        def one(tile):
            return product_key_topk(tile[0], keys[tile[1]], self.memory.top_k)

        found = jax.lax.map(one, (tiles, rows.layout.tile_groups))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), found)


def _columns(y: Float[Array, "P a"], width: int) -> Float[Array, "P b"]:
    """This many columns of values: all of those that the tensor axis splits, or this device's part of what is whole."""
    if y.shape[1] > width:
        return jax.lax.dynamic_slice_in_dim(y, shard_offset("tensor", width), width, axis=1)
    return gather(y, "tensor", 1) if y.shape[1] < width else y


def _flat(x: Array) -> Array:
    """[P, H, k] -> [P, H k]."""
    return x.reshape(x.shape[0], -1)
