"""A layer that only some tokens go through: the router, and moving tokens in and out of a shorter sequence."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mot_jax.config import Model
from mot_jax.config.experts import Depth
from mot_jax.nn.auxiliary import AuxiliaryRouter, agreement
from mot_jax.nn.context import Context
from mot_jax.nn.parameters import weight
from mot_jax.nn.report import Report, merge
from mot_jax.nn.rows import Rows, enter, leave, make_rows
from mot_jax.routing import depth as routing

POOL = "mixture_of_depths"  # in the names of metrics, where experts have their pool

# (x [P, D], rows, context) -> what the layer adds to x, and its report
Layer = Callable[[Float[Array, "P D"], Rows, Context], tuple[Float[Array, "P D"], Report]]


class DepthRouter(nnx.Module):
    """sigmoid(x router) weighs what a selected token's layer adds (arXiv 2407.21770, section 2.3)."""

    def __init__(self, model: Model, depth: Depth, rngs: nnx.Rngs):
        self.config = depth
        self.router = weight(rngs, (model.dim,), (None,), std=model.dim**-0.5)
        if model.auxiliary_routers:
            self.auxiliary = AuxiliaryRouter(model.dim, 1, 1, rngs)

    def __call__(
        self, x: Float[Array, "P D"], rows: Rows, context: Context, layer: Layer
    ) -> tuple[Float[Array, "P D"], Report]:
        sequence = leave(rows, x)
        scores = jnp.einsum(
            "bsd,d->bs", sequence.astype(jnp.float32), self.router[...], precision=jax.lax.Precision.HIGHEST
        )
        gates = jax.nn.sigmoid(scores)[..., None]
        valid = rows.segment_ids > 0
        guess = self.auxiliary(sequence)[..., 0, 0] if hasattr(self, "auxiliary") else None
        groups = None if rows.layout is None else rows.layout.num_groups
        if context.causal and guess is None:
            raise ValueError("causal: layers that choose their tokens need auxiliary routers, and the model has none")
        if context.causal:
            # How many go through is not known when this is compiled, so the others are masked, not left out.
            chosen = (guess > 0) & valid
            segments = jnp.where(chosen, rows.segment_ids, 0)
            inside = make_rows(rows.token_ids, rows.group_ids, segments, rows.rope, groups)
            added, told = layer(enter(inside, sequence), inside, context)
            return enter(rows, (leave(inside, added) * gates * chosen[..., None]).astype(x.dtype)), told
        chosen, selection = routing.select(scores, valid, self.config, context.blocks)
        if self.config.selection == "batch":  # rows end to end: their documents must not be taken for one
            own = jnp.arange(valid.shape[0], dtype=jnp.int32)[:, None] * (valid.shape[1] + 1)
            segment_ids = jnp.where(valid, rows.segment_ids + own, 0)
        else:
            segment_ids = rows.segment_ids
        inside = make_rows(
            routing.gather(selection, rows.token_ids),
            routing.gather(selection, rows.group_ids),
            routing.gather(selection, segment_ids),
            tuple(routing.gather(selection, angle) for angle in rows.rope),
            groups,
        )
        added, told = layer(enter(inside, routing.gather(selection, sequence)), inside, context)
        added = routing.scatter(selection, leave(inside, added), valid.shape) * gates
        return enter(rows, added.astype(x.dtype)), merge(told, _report(chosen, gates[..., 0], valid, guess))


def _report(
    chosen: Bool[Array, "B S"], gates: Float[Array, "B S"], valid: Bool[Array, "B S"], guess: Array | None
) -> Report:
    count, through = jnp.sum(valid, dtype=jnp.float32), jnp.sum(chosen, dtype=jnp.float32)
    metrics = {f"{POOL}/selected": (through, count), f"{POOL}/gate": (jnp.sum(gates * chosen), through)}
    zero = jnp.zeros((), jnp.float32)
    if guess is None:
        return Report(zero, zero, metrics)
    agreed = agreement(guess, chosen, valid)
    return Report(zero, agreed.loss, metrics | {f"{POOL}/{name}": v for name, v in agreed.metrics.items()})
