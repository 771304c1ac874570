"""Keys and values of what each row has said so far: prefill takes whole prompts, decode one more token a row."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mot_jax.config import RULES, Model, Rules, expand
from mot_jax.nn.attention import causal_in_document
from mot_jax.nn.transformer import forward


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Per layer rotated keys and values [B, K, C, H]; a row's first held[layer][b] of C places hold tokens.

    They lie head by head, as products with one query read them: otherwise each step would transpose all of them. A
    token that skips a layer (mixture-of-depths) leaves none there. Inside a manual mesh the K heads are those of one
    device.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    held: tuple[jax.Array, ...]  # int32[B] each
    lengths: jax.Array  # int32[B], tokens of each row so far


def prefill(
    model: Model,
    params: dict,
    tokens: Int[Array, "B S"],
    modality_ids: Int[Array, "B S"],
    lengths: Int[Array, "B"],
    capacity: int,
    rules: Rules = RULES,
) -> tuple[Float[Array, "B D"], Cache]:
    """The hidden state of each row's last token, and a cache with room for `capacity` tokens a row.

    Args:
      tokens: prompts, padded on the right.
      lengths: the prompts' own lengths; a row of length 0 costs nothing and its hidden state means nothing.
    """
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    segment_ids = (place < lengths[:, None]).astype(jnp.int32)
    blocks = expand(model)
    keys, values, held = {}, {}, {}

    def attend(layer, q, k, v, segment_ids):
        here = segment_ids > 0
        spare = ((0, 0), (0, 0), (0, capacity - k.shape[1]), (0, 0))
        if blocks[layer].depth is None:
            stored = k, v
        else:  # the tokens that did not skip, moved together
            first = jnp.argsort(~here, axis=1, stable=True)[..., None, None]
            stored = jnp.take_along_axis(k, first, axis=1), jnp.take_along_axis(v, first, axis=1)
        keys[layer], values[layer] = (jnp.pad(x.swapaxes(1, 2), spare) for x in stored)
        held[layer] = jnp.sum(here, axis=1, dtype=jnp.int32)
        return causal_in_document(q, k, v, segment_ids)

    positions = jnp.broadcast_to(place[None, :, None], (*tokens.shape, 1))
    hidden = forward(model, params, tokens, modality_ids, positions, segment_ids, attend, rules)
    last = jnp.maximum(lengths - 1, 0)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
    order = sorted(keys)
    return hidden, Cache(
        keys=tuple(keys[layer] for layer in order),
        values=tuple(values[layer] for layer in order),
        held=tuple(held[layer] for layer in order),
        lengths=lengths.astype(jnp.int32),
    )


def decode(
    model: Model,
    params: dict,
    cache: Cache,
    tokens: Int[Array, "B"],
    modality_ids: Int[Array, "B"],
    active: Bool[Array, "B"],
    rules: Rules = RULES,
) -> tuple[Float[Array, "B D"], Cache]:
    """The hidden state of one more token a row, and the cache with it; rows that are not active stay as they are."""
    capacity = cache.keys[0].shape[2]
    rows = jnp.arange(tokens.shape[0])
    keys, values, held = list(cache.keys), list(cache.values), list(cache.held)

    def attend(layer, q, k, v, segment_ids):
        here = segment_ids[:, 0] > 0
        place = jnp.where(here, held[layer], capacity)  # a write outside is dropped
        seen = jnp.arange(capacity) <= held[layer][:, None]
        held[layer] = held[layer] + here.astype(jnp.int32)
        keys[layer] = keys[layer].at[rows, :, place].set(k[:, 0], mode="drop")
        values[layer] = values[layer].at[rows, :, place].set(v[:, 0], mode="drop")
        return attend_once(q, keys[layer], values[layer], seen)

    positions = cache.lengths[:, None, None]
    segment_ids = active[:, None].astype(jnp.int32)
    hidden = forward(model, params, tokens[:, None], modality_ids[:, None], positions, segment_ids, attend, rules)
    lengths = cache.lengths + active.astype(jnp.int32)
    return hidden[:, 0], Cache(keys=tuple(keys), values=tuple(values), held=tuple(held), lengths=lengths)


def attend_once(
    q: Float[Array, "B 1 N H"], keys: Float[Array, "B K C H"], values: Float[Array, "B K C H"], seen: Bool[Array, "B C"]
) -> Float[Array, "B 1 N H"]:
    """Softmax attention of one query a row over the places it sees; N / K query heads share a key and value head."""
    batch, kv_heads, _, head_dim = keys.shape
    queries = q.reshape(batch, kv_heads, -1, head_dim)
    scores = jnp.einsum("bkgh,bkch->bkgc", queries, keys, preferred_element_type=jnp.float32) * head_dim**-0.5
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
    return jnp.einsum("bkgc,bkch->bkgh", weights.astype(values.dtype), values).reshape(q.shape)
