"""Random parameters for tests of generation."""

import jax
import jax.numpy as jnp
import numpy as np

from mot_jax.config import Model
from mot_jax.nn import transformer


def random_params(model: Model, seed: int = 0) -> dict:
    """Random everywhere, norm gains and biases too; drawn by numpy, so nothing is compiled."""
    generator = np.random.default_rng(seed)

    def draw(leaf):
        return jnp.asarray(generator.normal(size=leaf.shape, scale=leaf.shape[-1] ** -0.5), jnp.float32)

    return jax.tree.map(draw, transformer.abstract(model))
