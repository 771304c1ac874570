"""SwiGLU feed-forward (arXiv 2002.05202), shared or one a group."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from kernels_pallas.grouped_matmul import grouped_feed_forward
from mot_jax.nn.parameters import grouped, split_over, use, weight
from mot_jax.nn.rows import Rows
from mot_jax.parallel.collectives import sum_over


class FeedForward(nnx.Module):
    """(silu(x gate) * (x up)) down, without biases."""

    def __init__(self, dim: int, ffn_dim: int, groups: int | None, output_std: float, rngs: nnx.Rngs):
        inward = grouped(groups, (dim, ffn_dim), ("embed", "ffn"))
        outward = grouped(groups, (ffn_dim, dim), ("ffn", "embed"))
        self.gate = weight(rngs, *inward, std=dim**-0.5)
        self.up = weight(rngs, *inward, std=dim**-0.5)
        self.down = weight(rngs, *outward, std=output_std * ffn_dim**-0.5)

    def __call__(self, x: Float[Array, "P D"], rows: Rows) -> Float[Array, "P D"]:
        gate, up, down = (use(param, x.dtype) for param in (self.gate, self.up, self.down))
        if gate.ndim == 2:
            y = (jax.nn.silu((x @ gate).astype(jnp.float32)) * (x @ up)).astype(x.dtype) @ down
        else:
            y = grouped_feed_forward(x, gate, up, down, rows.layout)
        return sum_over(y, split_over(self.down, "ffn"))
