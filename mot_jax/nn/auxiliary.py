"""Auxiliary routers: a causal guess at what expert choice and depth would select (arXiv 2407.21770, section 2.4)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mot_jax.nn.parameters import weight


class AuxiliaryRouter(nnx.Module):
    """sigmoid(silu(x W1) W2) > 0.5, that is logits > 0; one router a pool, `outputs` of it E at most. float32."""

    def __init__(self, dim: int, pools: int, outputs: int, rngs: nnx.Rngs):
        hidden = dim // 2
        self.inward = weight(rngs, (pools, dim, hidden), ("group", None, None), std=dim**-0.5)
        self.outward = weight(rngs, (pools, hidden, outputs), ("group", None, None), std=hidden**-0.5)

    @jax.named_scope("auxiliary")
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... pools E"]:
        # Trained alone: nothing of it reaches what feeds it.
        x = jax.lax.stop_gradient(x).astype(jnp.float32)
        product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
        hidden = jax.nn.silu(product("...d,mdh->...mh", x, self.inward[...]))
        return product("...mh,mhe->...me", hidden, self.outward[...])


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How a router's guesses compare with what was selected: sums over tokens and experts."""

    loss: Float[Array, ""]  # binary cross-entropy
    metrics: dict[str, tuple[Array, Array]]


def agreement(logits: Float[Array, "..."], selected: Bool[Array, "..."], counted: Bool[Array, "..."]) -> Agreement:
    """The training loss of the guesses, their precision, recall and accuracy, where `counted`."""
    selected = jax.lax.stop_gradient(selected)
    loss = jax.nn.softplus(jnp.where(selected, -logits, logits))
    guessed = (logits > 0) & counted
    right = jnp.sum(guessed & selected, dtype=jnp.float32)
    pairs = jnp.sum(counted, dtype=jnp.float32)
    total = jnp.sum(loss * counted)
    return Agreement(
        loss=total,
        metrics={
            "auxiliary_loss": (total, pairs),
            "precision": (right, jnp.sum(guessed, dtype=jnp.float32)),
            "recall": (right, jnp.sum(selected & counted, dtype=jnp.float32)),
            "agreement": (jnp.sum((guessed == selected) & counted, dtype=jnp.float32), pairs),
        },
    )
