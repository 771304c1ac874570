"""Mixture-of-Transformers in PyTorch, as a user would otherwise write it: what mot_jax's step is measured against.

Each modality's norms, projections and SwiGLU are modules of its own (arXiv 2411.04996, algorithm 1). A modality's
tokens stay together from one attention to the next, so rows move twice a layer; the published code moves them around
every module. Attention is torch's own over the whole mixed sequence, AdamW is its fused one.
"""

import dataclasses

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mot_jax import config
from mot_jax.batch import Batch
from mot_jax.config import Model, Run
from mot_jax.nn.rotary import frequencies
from mot_jax.training.optimizer import make_schedule

@dataclasses.dataclass(frozen=True)
class Masks:
    """Rows by modality through boolean masks, as in the paper."""

    masks: tuple[torch.Tensor, ...]  # bool[T] each

    def split(self, x):
        return [x[mask] for mask in self.masks]

    def join(self, parts):
        out = parts[0].new_empty(self.masks[0].shape[0], *parts[0].shape[1:])
        for mask, part in zip(self.masks, parts, strict=True):
            out[mask] = part
        return out


@dataclasses.dataclass(frozen=True)
class Lists:
    """Rows by modality through lists of their numbers, made once a step."""

    lists: tuple[torch.Tensor, ...]  # int64[T_m] each, together a permutation of T

    def split(self, x):
        return [x.index_select(0, rows) for rows in self.lists]

    def join(self, parts):
        out = parts[0].new_empty(sum(rows.shape[0] for rows in self.lists), *parts[0].shape[1:])
        for rows, part in zip(self.lists, parts, strict=True):
            out = out.index_copy(0, rows, part)
        return out


class Move(torch.autograd.Function):
    """Rows in another order; torch's own gradient of a gather adds rows one at a time."""

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
class Order:
    """Rows by modality through one permutation, made once a step, with its inverse."""

    order: torch.Tensor
    inverse: torch.Tensor
    sizes: tuple[int, ...]

    def split(self, x):
        return Move.apply(x, self.order, self.inverse).split(self.sizes)

    def join(self, parts):
        return Move.apply(torch.cat(parts), self.inverse, self.order)


@dataclasses.dataclass(frozen=True)
class Whole:
    """Rows of a dense model."""

    def split(self, x):
        return [x]

    def join(self, parts):
        return parts[0]


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

    def before(self, x):
        """[T, D] -> normalised queries and keys [T, 2, N, H], values [T, N, H]."""
        y = self.qkv(self.attention_norm(x) if self.pre else x).view(-1, 3, self.heads, self.head_dim)
        return F.rms_norm(y[:, :2], (self.head_dim,), eps=self.epsilon) * self.query_key_gain, y[:, 2]

    def after(self, x, y):
        """The layer's result [T, D] from its input and from what attention read [T, N H]."""
        if self.pre:
            x = x + self.output(y)
            return x + self._feed_forward(self.feed_forward_norm(x))
        x = x + self.attention_norm(self.output(y))
        return x + self.feed_forward_norm(self._feed_forward(x))

    def _feed_forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Transformer(nn.Module):
    """The models of step_time.py: RMSNorm everywhere, as many key heads as heads, all parts untied or none."""

    def __init__(self, model: Model):
        super().__init__()
        self.groups = len(model.modalities) if model.untied else 1
        self.embedding = nn.Embedding(model.vocab_size, model.dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(Own(model, block) for _ in range(self.groups)) for block in config.expand(model)
        )
        self.final_norms = nn.ModuleList(nn.RMSNorm(model.dim, model.norm_epsilon) for _ in range(self.groups))
        self.head = nn.Linear(model.dim, model.vocab_size, bias=False)

    def forward(self, x: "Inputs", z_loss: float):
        """The mean weighted cross-entropy and z-loss."""
        shape = x.tokens.shape
        parts = x.rows.split(self.embedding(x.tokens.reshape(-1)))
        for layer in self.layers:
            made = [own.before(part) for own, part in zip(layer, parts, strict=True)]
            query_key, value = (x.rows.join(list(each)).unflatten(0, shape) for each in zip(*made, strict=True))
            query_key = rotate(query_key, x.cos, x.sin)
            q, k, v = (y.transpose(1, 2) for y in (query_key[:, :, 0], query_key[:, :, 1], value))
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=x.mask).transpose(1, 2)
            parts = [
                own.after(part, y)
                for own, part, y in zip(layer, parts, x.rows.split(read.flatten(2).flatten(0, 1)), strict=True)
            ]
        hidden = x.rows.join([norm(part) for norm, part in zip(self.final_norms, parts, strict=True)])
        logits = self.head(hidden)
        log_z = logits.logsumexp(-1)
        nll = log_z - logits.gather(1, x.targets[:, None])[:, 0]
        return ((nll + z_loss * log_z.square()) * x.weights).sum() / (x.weights > 0).sum()


def rotate(y, cos, sin):
    first, second = y.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch as tensors, and what of it all layers share."""

    tokens: torch.Tensor  # int64[B, S]
    rows: Masks | Lists | Order | Whole
    cos: torch.Tensor  # [B, S, 1, 1, H / 2]
    sin: torch.Tensor
    mask: torch.Tensor  # bool[B, 1, S, S]: earlier tokens of the same document
    targets: torch.Tensor  # int64[T]
    weights: torch.Tensor  # [T]


def inputs(model: Model, batch: Batch, form: str) -> Inputs:
    tokens = torch.from_numpy(batch.tokens).long()
    segments = torch.from_numpy(batch.segment_ids)
    rates = torch.from_numpy(frequencies(config.heads(model)[2], model.rope_theta, model.rope_scaling))
    phase = (torch.from_numpy(batch.positions).float() * rates)[:, :, None, None]
    length = segments.shape[1]
    mask = (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(length, length, dtype=bool).tril()
    return Inputs(
        tokens=tokens,
        rows=rows(torch.from_numpy(batch.modality_ids).reshape(-1), len(model.modalities), form if model.untied else "whole"),
        cos=phase.cos(),
        sin=phase.sin(),
        mask=mask,
        targets=torch.from_numpy(batch.targets).reshape(-1).long(),
        weights=torch.from_numpy(batch.loss_weights).reshape(-1),
    )


def rows(modality, count: int, form: str):
    if form == "whole":
        return Whole()
    if form == "masks":
        return Masks(tuple(modality == i for i in range(count)))
    order = modality.argsort(stable=True)
    sizes = tuple(modality.bincount(minlength=count).tolist())
    if form == "lists":
        return Lists(order.split(sizes))
    return Order(order, order.argsort(), sizes)


def tensors(model: Model, tree: dict) -> dict[str, np.ndarray]:
    """mot_jax's parameters, or gradients of them, by the names and in the shapes of `Transformer`."""
    tree = jax.tree.map(np.asarray, tree)
    found = {"embedding.weight": tree["embedding"]["table"], "head.weight": tree["head"]["table"]}
    groups = len(model.modalities) if model.untied else 1

    def own(leaf, g):
        return leaf[g] if model.untied else leaf

    for g in range(groups):
        found[f"final_norms.{g}.weight"] = own(tree["final_norm"]["gain"], g)
        for i, layer in tree["layers"].items():
            at = f"layers.{i}.{g}."
            attention, feed_forward = layer["attention"], layer["feed_forward"]
            qkv = own(attention["qkv"], g)  # [D, N, 3, H]
            found[at + "qkv.weight"] = qkv.transpose(2, 1, 3, 0).reshape(-1, qkv.shape[0])
            gains = [own(attention[name]["gain"], g) for name in ("query_norm", "key_norm")]
            found[at + "query_key_gain"] = np.stack(gains)[:, None]
            output = own(attention["output"], g)
            found[at + "output.weight"] = output.reshape(-1, output.shape[-1]).T
            for name in ("gate", "up", "down"):
                found[f"{at}{name}.weight"] = own(feed_forward[name], g).T
            for name in ("attention_norm", "feed_forward_norm"):
                found[f"{at}{name}.weight"] = own(layer[name]["gain"], g)
    return found


def transformer(model: Model, params: dict) -> Transformer:
    made = Transformer(model)
    made.load_state_dict({name: torch.tensor(a) for name, a in tensors(model, params).items()})
    return made


def train_step(run: Run, peer: Transformer, steps: int, form: str, *, compiled: bool = False):
    """`batch -> loss`: a training step as mot_jax's, the optimizer's included."""
    o = run.optimizer
    plain = [p for name, p in peer.named_parameters() if "norm" in name or "gain" in name]
    matrices = [p for name, p in peer.named_parameters() if not ("norm" in name or "gain" in name)]
    groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=o.learning_rate, betas=(o.b1, o.b2), eps=o.epsilon, fused=True)
    schedule = make_schedule(o, steps)
    forward = torch.compile(peer) if compiled else peer
    parameters = list(peer.parameters())
    taken = 0

    def step(batch: Batch) -> float:
        nonlocal taken
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(taken))
        taken += 1
        loss = forward(inputs(run.model, batch, form), run.train.z_loss)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, o.clip_norm)
        optimizer.step()
        return loss.item()

    return step
