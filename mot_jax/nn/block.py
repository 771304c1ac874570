"""One layer: attention and feed-forward, each with its norm before it (pre) or after it (post: x + norm(f(x)))."""

from flax import nnx
from jaxtyping import Array, Float

from mot_jax import config
from mot_jax.config import Model
from mot_jax.nn.attention import Attend, Attention
from mot_jax.nn.feed_forward import FeedForward
from mot_jax.nn.norm import Norm
from mot_jax.nn.rows import Rows


class Block(nnx.Module):
    """MoT and MoMa use `post` (arXiv 2411.04996, algorithm 1); Llama and Chameleon 7B use `pre`."""

    def __init__(self, model: Model, block: config.Block, rngs: nnx.Rngs):
        def groups(part):
            return num_groups(model) if part in block.untied else None

        # Pre-norm sums every layer's output unnormalised, so outputs start smaller the deeper the model.
        output_std = 1.0 if block.norm_order == "post" else (2 * len(config.expand(model))) ** -0.5
        self.norm_order = block.norm_order
        self.attention = Attention(model, groups("attention"), output_std, rngs)
        self.feed_forward = FeedForward(model.dim, block.ffn_dim, groups("feed_forward"), output_std, rngs)
        self.attention_norm = Norm(model.dim, model.norm, model.norm_epsilon, groups("norm"))
        self.feed_forward_norm = Norm(model.dim, model.norm, model.norm_epsilon, groups("norm"))

    def __call__(
        self, x: Float[Array, "P D"], rows: Rows, rope: tuple[Array, Array], attend: Attend, layer: int | None
    ) -> Float[Array, "P D"]:
        if self.norm_order == "pre":
            x = x + self.attention(self.attention_norm(x, rows), rows, rope, attend, layer)
            return x + self.feed_forward(self.feed_forward_norm(x, rows), rows)
        x = x + self.attention_norm(self.attention(x, rows, rope, attend, layer), rows)
        return x + self.feed_forward_norm(self.feed_forward(x, rows), rows)


def num_groups(model: Model) -> int:
    return max(config.group_of_modality(model)) + 1
