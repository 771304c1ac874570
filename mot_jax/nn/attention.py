"""Global attention: projections shared or one a group, one softmax over the whole mixed sequence (MoT, §2.2)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from mot_jax.config import Model, heads
from mot_jax.nn.blockwise import blockwise_attention
from mot_jax.nn.context import Context
from mot_jax.nn.norm import Norm
from mot_jax.nn.parameters import constant, grouped, split_over, use, weight
from mot_jax.nn.rotary import rotate
from mot_jax.nn.rows import Rows, enter, leave, per_row, project
from mot_jax.nn.whole_attention import whole_attention
from mot_jax.parallel.collectives import sum_over

BLOCK = 512  # queries and keys of longer rows that are scored at a time


class Attention(nnx.Module):
    """Queries, keys and values by key/value head: `qkv` [D, K, N/K + 2, H] holds each head's queries, key and value."""

    def __init__(self, model: Model, groups: int | None, output_std: float, rngs: nnx.Rngs):
        num_heads, kv_heads, head_dim = heads(model)
        per_kv = num_heads // kv_heads
        self.qkv = weight(
            rngs,
            *grouped(groups, (model.dim, kv_heads, per_kv + 2, head_dim), ("embed", "kv_heads", None, None)),
            std=model.dim**-0.5,
        )
        self.output = weight(
            rngs,
            *grouped(groups, (kv_heads, per_kv, head_dim, model.dim), ("kv_heads", None, None, "embed")),
            std=output_std * (num_heads * head_dim) ** -0.5,
        )
        if model.qkv_bias:
            self.bias = constant(0.0, *grouped(groups, (kv_heads, per_kv + 2, head_dim), ("kv_heads", None, None)))
        if model.qk_norm != "none":
            self.query_norm = Norm(head_dim, model.qk_norm, model.norm_epsilon, groups)
            self.key_norm = Norm(head_dim, model.qk_norm, model.norm_epsilon, groups)

    def __call__(self, x: Float[Array, "P D"], rows: Rows, context: Context) -> Float[Array, "P D"]:
        qkv = use(self.qkv, x.dtype)
        *_, kv_heads, parts, head_dim = qkv.shape  # this device's heads
        y = project(rows, x, qkv.reshape(*qkv.shape[:-3], kv_heads * parts * head_dim))
        if hasattr(self, "bias"):
            bias = use(self.bias, x.dtype)
            y = y + per_row(rows, bias.reshape(*bias.shape[:-3], -1), y.ndim).astype(x.dtype)
        y = y.reshape(-1, kv_heads, parts, head_dim)
        if hasattr(self, "query_norm"):
            q, k, v = _split(y)
            y = jnp.concatenate([self.query_norm(q, rows), self.key_norm(k, rows), v], 2)
        q, k, v = _split(leave(rows, y))  # one gather takes all three back to sequence order
        q, k, v = rotate(q.reshape(*q.shape[:2], -1, head_dim), *rows.rope), k.squeeze(3), v.squeeze(3)
        y = context.attend(context.layer, q, rotate(k, *rows.rope), v, rows.segment_ids)
        y = enter(rows, y.reshape(*y.shape[:2], -1))
        output = use(self.output, x.dtype)
        output = output.reshape(*output.shape[:-4], -1, output.shape[-1])
        return sum_over(project(rows, y, output), split_over(self.output, "kv_heads"))


def _split(y: Float[Array, "... P H"]) -> list[Array]:
    """Queries [..., P - 2, H], key and value [..., 1, H]; unlike that of slices, its gradient is one concatenation."""
    return lax.split(y, (y.shape[-2] - 2, 1, 1), axis=y.ndim - 2)


@jax.named_scope("scores")
def causal_in_document(
    q: Float[Array, "B S N H"], k: Float[Array, "B S K H"], v: Float[Array, "B S K H"], segment_ids: Int[Array, "B S"]
) -> Float[Array, "B S N H"]:
    """Causal softmax attention within each packed document; of rows longer than BLOCK no S x S array is held."""
    if q.shape[1] > BLOCK:
        return blockwise_attention(q, k, v, segment_ids, BLOCK)
    return whole_attention(q, k, v, segment_ids)
