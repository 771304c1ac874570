"""Rotary position embedding (arXiv 2104.09864), half-split, with Llama-3 frequency scaling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mot_jax.config import RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """float32[H/2] radians per position."""
    rates = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is not None:
        # Long wavelengths are divided by the factor, short ones kept, those between interpolated.
        turns = scaling.original_length * rates / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
        rates = kept * rates + (1 - kept) * rates / scaling.factor
    return rates.astype(np.float32)


def angles(positions: Int[Array, "B S A"], rates: np.ndarray) -> tuple[Float[Array, "B S H"], Float[Array, "B S H"]]:
    """(cos, sin) float32[B, S, H/2]; with A position axes the frequencies are shared out among them in equal runs."""
    axis = np.arange(len(rates)) * positions.shape[-1] // len(rates)

    def row(positions):
        phase = positions[:, axis].astype(jnp.float32) * rates
        return jnp.cos(phase), jnp.sin(phase)

    # A loop on a CPU: XLA fuses what is outside of one into every rotation there, and makes it anew for each head.
    return jax.lax.platform_dependent(
        positions, cpu=lambda positions: jax.lax.map(row, positions), default=jax.vmap(row)
    )


def rotate(
    x: Float[Array, "B S N H"], cos: Float[Array, "B S R"], sin: Float[Array, "B S R"]
) -> Float[Array, "B S N H"]:
    """Rotates the pairs (i, i + H/2) of every head, in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x.dtype)
