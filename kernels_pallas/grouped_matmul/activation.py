"""SwiGLU's elementwise part and its gradient, in float32 whatever the operands are."""

import jax
import jax.numpy as jnp


def activate(gate, up):
    """silu(gate) * up, in gate's dtype."""
    return (jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)).astype(gate.dtype)


def activation_gradient(gate, up, dy):
    """(activate(gate, up), d gate, d up) for the cotangent dy of the first; all in gate's dtype."""
    gate32, up32, dy32 = (a.astype(jnp.float32) for a in (gate, up, dy))
    share = jax.nn.sigmoid(gate32)
    silu = gate32 * share
    d_gate = dy32 * up32 * (share + silu * (1 - share))
    return tuple(a.astype(gate.dtype) for a in (silu * up32, d_gate, dy32 * silu))
