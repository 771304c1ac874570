"""Mixture-of-Transformers in PyTorch, written as well as a user would: what mot_jax's step is measured against.

Each modality's norms, projections and SwiGLU are modules of its own (arXiv 2411.04996, algorithm 1). A modality's
tokens stay together from one attention to the next, so rows move twice a layer, not around every module.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mot_jax import config
from mot_jax.config import Model


@dataclasses.dataclass(frozen=True)
class Masks:
    """Rows by modality through boolean masks, as in the paper."""

    masks: tuple[Tensor, ...]  # bool[T] each

    def split(self, x: Tensor) -> list[Tensor]:
        return [x[mask] for mask in self.masks]

    def join(self, parts: list[Tensor]) -> Tensor:
        out = parts[0].new_empty(self.masks[0].shape[0], *parts[0].shape[1:])
        for mask, part in zip(self.masks, parts, strict=True):
            out[mask] = part
        return out


@dataclasses.dataclass(frozen=True)
class Order:
    """Rows by modality through one permutation, made once a step; of a dense model `order` is None."""

    order: Tensor | None  # int64[T]
    inverse: Tensor | None
    sizes: tuple[int, ...]  # a modality

    def split(self, x: Tensor) -> list[Tensor]:
        return [x] if self.order is None else list(Move.apply(x, self.order, self.inverse).split(self.sizes))

    def join(self, parts: list[Tensor]) -> Tensor:
        return parts[0] if self.order is None else Move.apply(torch.cat(parts), self.inverse, self.order)


class Move(torch.autograd.Function):
    """Rows in another order. On a CPU torch's own gradient of it takes longer: it adds, for rows taken twice."""

    @staticmethod
    def forward(x, order, inverse):
        return x.index_select(0, order)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.inverse = inputs[2]

    @staticmethod
    def backward(ctx, dy):
        return dy.index_select(0, ctx.inverse), None, None


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch as tensors, and what of it all layers share."""

    tokens: Tensor  # int64[B, S]
    rows: Masks | Order
    cos: Tensor  # [B, S, 1, 1, H / 2]
    sin: Tensor
    mask: Tensor  # [B, 1, S, S]: 0 for earlier tokens of the same document, else -inf
    targets: Tensor  # int64[T]
    weights: Tensor  # [T]


class Own(nn.Module):
    """One modality's share of one layer: everything but the attention itself. Of a dense model, all of it."""

    def __init__(self, model: Model, block: config.Block):
        super().__init__()
        self.heads, _, self.head_dim = config.heads(model)
        self.epsilon, self.pre = model.norm_epsilon, block.norm_order == "pre"
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(model.dim, 3 * inner, bias=False)
        self.query_key_gain = nn.Parameter(torch.ones(2, 1, self.head_dim))
        self.output = nn.Linear(inner, model.dim, bias=False)
        self.gate = nn.Linear(model.dim, block.ffn_dim, bias=False)
        self.up = nn.Linear(model.dim, block.ffn_dim, bias=False)
        self.down = nn.Linear(block.ffn_dim, model.dim, bias=False)
        self.attention_norm = nn.RMSNorm(model.dim, model.norm_epsilon)
        self.feed_forward_norm = nn.RMSNorm(model.dim, model.norm_epsilon)

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, D] -> normalised queries and keys [T, 2, N, H], values [T, N, H]."""
        y = self.qkv(self.attention_norm(x) if self.pre else x).view(-1, 3, self.heads, self.head_dim)
        return F.rms_norm(y[:, :2], (self.head_dim,), eps=self.epsilon) * self.query_key_gain, y[:, 2]

    def after(self, x: Tensor, read: Tensor) -> Tensor:
        """The layer's result [T, D] from its input and from what attention read [T, N H]."""
        if self.pre:
            x = x + self.output(read)
            return x + self._feed_forward(self.feed_forward_norm(x))
        x = x + self.attention_norm(self.output(read))
        return x + self.feed_forward_norm(self._feed_forward(x))

    def _feed_forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Transformer(nn.Module):
    """The models of step_time.py: RMSNorm everywhere, as many key heads as heads, all parts untied or none."""

    def __init__(self, model: Model):
        super().__init__()
        groups = len(model.modalities) if model.untied else 1
        self.embedding = nn.Embedding(model.vocab_size, model.dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(Own(model, block) for _ in range(groups)) for block in config.expand(model)
        )
        self.final_norms = nn.ModuleList(nn.RMSNorm(model.dim, model.norm_epsilon) for _ in range(groups))
        self.head = nn.Linear(model.dim, model.vocab_size, bias=False)

    def forward(self, x: Inputs, z_loss: float) -> tuple[Tensor, Tensor]:
        """(objective, plain cross-entropy), means over the tokens that have something to predict."""
        parts = x.rows.split(self.embedding(x.tokens.reshape(-1)))
        for layer in self.layers:
            made = [own.before(part) for own, part in zip(layer, parts, strict=True)]
            query_key, value = (
                x.rows.join(list(each)).unflatten(0, x.tokens.shape) for each in zip(*made, strict=True)
            )
            query_key = rotate(query_key, x.cos, x.sin)
            q, k, v = (y.transpose(1, 2) for y in (query_key[:, :, 0], query_key[:, :, 1], value))
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=x.mask)
            read = x.rows.split(read.transpose(1, 2).flatten(2).flatten(0, 1))
            parts = [own.after(part, y) for own, part, y in zip(layer, parts, read, strict=True)]
        logits = self.head(x.rows.join([norm(part) for norm, part in zip(self.final_norms, parts, strict=True)]))
        log_z = logits.logsumexp(-1)
        nll = log_z - logits.gather(1, x.targets[:, None])[:, 0]
        count = (x.weights > 0).sum()
        loss = (nll * x.weights).sum() / count
        return loss + z_loss * (log_z.square() * x.weights).sum() / count, loss.detach()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
