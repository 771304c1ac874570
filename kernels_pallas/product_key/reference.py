"""The naive float32 form over all R^2 keys: for tests, never for speed."""

import jax.numpy as jnp
from jax import lax


def topk(queries, sub_keys, *, k: int, packed: bool):
    """queries [T, H, 2, d], sub_keys [H, 2, R, d] -> scores float32 and rows int32, each [T, H, k]."""
    del packed  # exact all the same
    queries, sub_keys = queries.astype(jnp.float32), sub_keys.astype(jnp.float32)
    scores = jnp.einsum("thpd,hprd->thpr", queries, sub_keys, precision="highest")
    sums = scores[:, :, 0, :, None] + scores[:, :, 1, None, :]
    return tuple(lax.top_k(sums.reshape(*sums.shape[:2], -1), k))
