"""Weighted next-token cross-entropy and z-loss without ever holding the logits.

Tokens go through the head in chunks. When a gradient is wanted it is formed in the same pass, while a chunk's logits
are at hand: three products with the head a token, none recomputed.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mot_jax.parallel.collectives import max_over, shard_offset, sum_over

CHUNK_ENTRIES = 1 << 23  # logits held at a time: 32 MB in float32


def _chunk_size(tokens: int, vocab: int) -> int:
    chunks = max(1, -(-tokens * vocab // CHUNK_ENTRIES))
    return -(-tokens // chunks)


def _scores(hidden, head, targets, z_loss, axis):
    """One chunk: (loss, negative log-likelihood, gradient of the loss with respect to this device's logits)."""
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=jnp.float32)
    is_target = targets[:, None] - shard_offset(axis, head.shape[0]) == jnp.arange(head.shape[0])
    top = max_over(jnp.max(logits, -1), axis)[:, None]
    exps = jnp.exp(logits - top)
    total = sum_over(jnp.sum(exps, -1), axis)[:, None]
    log_z = (jnp.log(total) + top)[:, 0]
    nll = log_z - sum_over(jnp.sum(jnp.where(is_target, logits, 0.0), -1), axis)
    gradient = exps / total * (1.0 + 2.0 * z_loss * log_z[:, None]) - is_target
    return nll + z_loss * log_z**2, nll, gradient


@jax.named_scope("head")
def _run(hidden, head, targets, weights, z_loss, axis, with_gradient):
    tokens, size = targets.shape[0], _chunk_size(targets.shape[0], head.shape[0])
    padding = -tokens % size

    def chunked(x):
        return jnp.pad(x, ((0, padding), *((0, 0),) * (x.ndim - 1))).reshape(-1, size, *x.shape[1:])

    def body(carry, chunk):
        total, d_head = carry
        h, target, weight = chunk
        loss, nll, d_logits = _scores(h, head, target, z_loss, axis)
        total = total + jnp.sum(weight * loss)
        if not with_gradient:
            return (total, d_head), (nll, None)
        d_logits = (weight[:, None] * d_logits).astype(h.dtype)
        d_hidden = jnp.einsum("tv,vd->td", d_logits, head)
        d_head = d_head + jnp.einsum("td,tv->dv", h, d_logits, preferred_element_type=jnp.float32)
        return (total, d_head), (nll, d_hidden)

    # Transposed: a CPU takes half the time for it, however small the sum is.
    d_head = jnp.zeros(head.shape[::-1], jnp.float32) if with_gradient else None
    (total, d_head), (nll, d_hidden) = jax.lax.scan(
        body, (jnp.float32(0), d_head), (chunked(hidden), chunked(targets), chunked(weights))
    )
    if with_gradient:
        d_hidden = d_hidden.reshape(-1, hidden.shape[1])[:tokens]
        d_head = d_head.T
    return total, nll.reshape(-1)[:tokens], d_hidden, d_head


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden: Float[Array, "T D"],
    head: Float[Array, "V D"],
    targets: Int[Array, " T"],
    weights: Float[Array, " T"],
    z_loss: float,
    axis: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, " T"]]:
    """(sum of weight * (nll + z_loss * log(Z)^2), nll of every token), float32; arXiv 2405.09818 §2.3.2 for the z-loss.

    Differentiable in `hidden` and `head` through the sum alone; the second output is for metrics and carries no
    gradient. `axis`: the mesh axis over which the vocabulary is split; `head` is then
    this device's part of it.
    """
    total, nll, _, _ = _run(hidden, head, targets, weights, z_loss, axis, with_gradient=False)
    return total, nll


def _forward(hidden, head, targets, weights, z_loss, axis):
    total, nll, d_hidden, d_head = _run(hidden, head, targets, weights, z_loss, axis, with_gradient=True)
    return (total, nll), (d_hidden, d_head.astype(head.dtype))


def _backward(z_loss, axis, gradients, cotangents):
    # Every device of the axis holds the same sum, so its cotangent is the sum of theirs.
    scale = sum_over(cotangents[0], axis)
    d_hidden, d_head = gradients
    return (d_hidden * scale).astype(d_hidden.dtype), (d_head * scale).astype(d_head.dtype), None, None


cross_entropy.defvjp(_forward, _backward)
