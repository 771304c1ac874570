"""One layer: attention and feed-forward, each with its norm before it (pre) or after it (post: x + norm(f(x)))."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from mot_jax import config
from mot_jax.config import Model
from mot_jax.nn.attention import Attention
from mot_jax.nn.context import Context
from mot_jax.nn.depth import DepthRouter
from mot_jax.nn.experts import Experts
from mot_jax.nn.feed_forward import FeedForward
from mot_jax.nn.memory import Memory
from mot_jax.nn.norm import Norm
from mot_jax.nn.report import Report, merge, nothing
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
        if config.has_memory(block):
            self.memory = Memory(model, groups("feed_forward"), output_std, rngs)
        if config.has_experts(model, block):
            self.feed_forward = Experts(model, block, output_std, rngs)
        elif not config.has_memory(block):
            width = config.expert_dim(model, block)
            self.feed_forward = FeedForward(model.dim, width, groups("feed_forward"), output_std, rngs)
        self.attention_norm = Norm(model.dim, model.norm, model.norm_epsilon, groups("norm"))
        self.feed_forward_norm = Norm(model.dim, model.norm, model.norm_epsilon, groups("norm"))
        if block.depth is not None:
            self.depth = DepthRouter(model, block.depth, rngs)

    def __call__(self, x: Float[Array, "P D"], rows: Rows, context: Context) -> tuple[Float[Array, "P D"], Report]:
        if hasattr(self, "depth"):
            added, report = self.depth(x, rows, context, self._added)
            return x + added, report
        attended, more, report = self._parts(x, rows, context)
        return x + attended + more, report

    def _added(self, x, rows: Rows, context: Context) -> tuple[Float[Array, "P D"], Report]:
        attended, more, report = self._parts(x, rows, context)
        return attended + more, report

    def _parts(self, x, rows: Rows, context: Context):
        """What attention adds, what the feed-forward adds, and its report."""
        if self.norm_order == "pre":
            attended = self._attention(self.attention_norm(x, rows), rows, context)
            more, report = self._feed_forward(self.feed_forward_norm(x + attended, rows), rows, context)
            return attended, more, report
        attended = self.attention_norm(self._attention(x, rows, context), rows)
        more, report = self._feed_forward(x + attended, rows, context)
        return attended, self.feed_forward_norm(more, rows), report

    # Scopes name the parts in compiled programs and profiles.
    @jax.named_scope("projections")
    def _attention(self, x, rows: Rows, context: Context) -> Float[Array, "P D"]:
        return self.attention(x, rows, context)

    @jax.named_scope("memory")
    def _memory(self, x, rows: Rows, context: Context) -> tuple[Float[Array, "P D"], Report]:
        return self.memory(x, rows, context)

    @jax.named_scope("feed_forward")
    def _feed_forward(self, x, rows: Rows, context: Context) -> tuple[Float[Array, "P D"], Report]:
        if not hasattr(self, "feed_forward"):
            return self._memory(x, rows, context)
        if not isinstance(self.feed_forward, Experts):
            return self.feed_forward(x, rows), nothing()
        y, report = self.feed_forward(x, rows, context)
        if not hasattr(self, "memory"):
            return y, report
        recalled, read = self._memory(x, rows, context)
        return y + recalled, merge(report, read)


def num_groups(model: Model) -> int:
    return max(config.group_of_modality(model)) + 1
