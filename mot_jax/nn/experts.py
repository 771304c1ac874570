"""A feed-forward divided into experts: routing names each token's experts, one grouped product runs them all.

The experts of all pools (a modality's, or everyone's) are one stack, so pools may differ in size and in how they route.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from kernels_pallas.grouped_matmul import align_rows, group_pairs, group_rows, grouped_feed_forward, ungroup_rows
from mot_jax import config
from mot_jax.config import Model, Pool
from mot_jax.config.experts import AverageKey, ExpertChoice, FeedForward, HashExperts, TokenChoice
from mot_jax.nn import report
from mot_jax.nn.auxiliary import AuxiliaryRouter, agreement
from mot_jax.nn.context import Context
from mot_jax.nn.parameters import split_over, use, weight
from mot_jax.nn.report import Report
from mot_jax.nn.rows import Rows, enter, leave
from mot_jax.parallel.collectives import axis_size, gather, sum_over
from mot_jax.parallel.expert_exchange import exchanged_feed_forward
from mot_jax.routing import expert_choice, load, token_choice
from mot_jax.routing.assignment import Assignment, Tokens, overlay


class Experts(nnx.Module):
    """Stacks gate, up [E, D, F] and down [E, F, D] over all pools' experts; router [D, those that learn theirs]."""

    def __init__(self, model: Model, block: config.Block, output_std: float, rngs: nnx.Rngs):
        self.pools = config.pools(model, block)
        self.grouped = "feed_forward" in block.untied  # a token's pool is its group; else there is one pool
        width, count = config.expert_dim(model, block), sum(pool.kind.stored for pool in self.pools)
        inward, outward = ("expert", "embed", "ffn"), ("expert", "ffn", "embed")
        self.gate = weight(rngs, (count, model.dim, width), inward, std=model.dim**-0.5)
        self.up = weight(rngs, (count, model.dim, width), inward, std=model.dim**-0.5)
        self.down = weight(rngs, (count, width, model.dim), outward, std=output_std * width**-0.5)
        if learned := sum(pool.kind.experts for pool in self.pools if _learns(pool)):
            self.router = weight(rngs, (model.dim, learned), (None, None), std=model.dim**-0.5)
        choosing = [pool.kind.experts for pool in self.pools if isinstance(pool.kind, ExpertChoice)]
        if model.auxiliary_routers and choosing:
            self.auxiliary = AuxiliaryRouter(model.dim, len(choosing), max(choosing), rngs)

    def __call__(self, x: Float[Array, "P D"], rows: Rows, context: Context) -> tuple[Float[Array, "P D"], Report]:
        gate, up, down = (use(param, x.dtype) for param in (self.gate, self.up, self.down))
        assignments, found = self._route(x, gate, rows, context)
        ids, weights = overlay(assignments)
        shape = (*rows.token_ids.shape, -1)
        ids = enter(rows, ids.reshape(shape) + 1) - 1  # padding enters as 0
        axis = split_over(self.gate, "expert")
        if axis_size(axis) > 1:
            weights = enter(rows, weights.reshape(shape))
            room, most = load.room(self.pools, gate.shape[0], rows.token_ids.size, limited=not context.causal)
            y = exchanged_feed_forward(x, ids, weights, (gate, up, down), axis=axis, room=room, most=most)
            return sum_over(y, split_over(self.down, "ffn")), found
        layout = align_rows(ids, gate.shape[0], max_pairs=None if context.causal else self._most(rows))
        y = grouped_feed_forward(group_rows(x, layout), gate, up, down, layout)
        if any(_learns(pool) for pool in self.pools):  # the others' weights are 1
            weights = group_pairs(enter(rows, weights.reshape(shape)), layout)
            y = (y * weights[:, None]).astype(y.dtype)
        return sum_over(ungroup_rows(y, layout), split_over(self.down, "ffn")), found

    def _most(self, rows: Rows) -> int:
        """How many pairs of a token and an expert there can be: every pool's rate holds for its own tokens only."""
        return int(rows.token_ids.size * max(pool.kind.active for pool in self.pools))

    def _route(self, x, gate, rows: Rows, context: Context) -> tuple[list[Assignment], Report]:
        """The pools' assignments, each in blocks of rows, and what there is to tell about them."""
        blocks = 1 if context.causal else context.blocks

        def in_blocks(y):
            return y.reshape(blocks, -1, *y.shape[2:])

        group_ids, token_ids = in_blocks(rows.group_ids), in_blocks(rows.token_ids)
        scores = in_blocks(leave(rows, self._scores(x))) if hasattr(self, "router") else None
        guesses = in_blocks(leave(rows, self.auxiliary(x))) if hasattr(self, "auxiliary") else None
        assignments, reports, column, chooser = [], [], 0, 0
        for number, pool in enumerate(self.pools):
            kind = pool.kind
            if not kind.stored:
                continue  # a memory's tokens
            mine = group_ids == number if self.grouped else group_ids >= 0
            own = None
            if _learns(pool):
                own = Tokens(scores[..., column : column + kind.experts], mine, pool.first)
                column += kind.experts
            if isinstance(kind, ExpertChoice):
                guess = None if guesses is None else guesses[..., chooser, : kind.experts]
                chooser += 1
                assigned, told = _expert_choice(pool, own, guess, context)
                reports.append(told)
            elif isinstance(kind, TokenChoice):
                assigned = token_choice.assign(own, kind, limited=not context.causal)
            elif isinstance(kind, AverageKey):
                keys = self._average_keys(gate)[pool.first : pool.first + kind.experts]
                own = in_blocks(leave(rows, _float32_product(x, keys.T)))
                assigned = token_choice.assign_unweighted(Tokens(own, mine, pool.first), kind.top_k)
            else:
                experts = kind.experts if isinstance(kind, HashExperts) else 1
                assigned = token_choice.assign_by_hash(token_ids, mine, pool.first, experts, context.index)
            assignments.append(assigned)
            reports.append(Report(assigned.loss, jnp.zeros((), jnp.float32), _statistics(pool, assigned, mine)))
        return assignments, report.merge(*reports)

    def _average_keys(self, gate: Float[Array, "e D F"]) -> Float[Array, "E D"]:
        """The mean of each expert's gate columns, whatever devices have them; carries no gradient."""
        keys = jnp.mean(jax.lax.stop_gradient(gate).astype(jnp.float32), axis=-1)
        columns = split_over(self.gate, "ffn")
        return gather(sum_over(keys, columns) / axis_size(columns), split_over(self.gate, "expert"), 0)

    def _scores(self, x: Float[Array, "P D"]) -> Float[Array, "P E"]:
        return _float32_product(x, self.router[...])


def _float32_product(x, weights):
    return jnp.einsum("pd,de->pe", x.astype(jnp.float32), weights, precision=jax.lax.Precision.HIGHEST)


def _learns(pool: Pool) -> bool:
    return isinstance(pool.kind, ExpertChoice | TokenChoice)


def _expert_choice(pool: Pool, tokens: Tokens, guess: Array | None, context: Context) -> tuple[Assignment, Report]:
    """In training the best tokens of a block; where the future may not be seen, what the auxiliary router guesses."""
    kind: ExpertChoice = pool.kind
    counted = jnp.broadcast_to(tokens.mine[..., None], tokens.scores.shape)
    if context.causal:
        if guess is None:
            raise ValueError("causal: experts that choose their tokens need auxiliary routers, and the model has none")
        return expert_choice.assign(tokens, (guess > 0) & counted), report.nothing()
    if kind.noise and context.noise is not None:
        key = jax.random.fold_in(jax.random.fold_in(context.noise.key, context.index), pool.first)
        blocks, *shape = tokens.scores.shape
        noise = expert_choice.logistic_noise(key, blocks, context.noise.first_block, tuple(shape))
        tokens = Tokens(tokens.scores + noise, tokens.mine, tokens.first)
    members = expert_choice.take_tokens(tokens, kind.active / kind.experts)
    told = report.nothing()
    if guess is not None:
        agreed = agreement(guess, members, counted)
        told = Report(told.balance, agreed.loss, {f"{pool.name}/{name}": v for name, v in agreed.metrics.items()})
    return expert_choice.assign(tokens, members), told


def _statistics(pool: Pool, assigned: Assignment, mine: Array) -> report.Metrics:
    """Of a pool with experts: each one's share of the tokens, tokens that none took, the mean weight, the balance."""
    if type(pool.kind) is FeedForward:
        return {}
    numbers = pool.first + np.arange(pool.kind.stored)
    taken = jnp.sum(assigned.experts[..., None] == numbers, axis=(0, 1, 2), dtype=jnp.float32)
    given = assigned.experts >= 0
    count = jnp.sum(mine, dtype=jnp.float32)
    pairs = jnp.sum(given, dtype=jnp.float32)
    metrics = {f"expert_{i}": (taken[i], count) for i in range(pool.kind.stored)}
    metrics["unserved"] = (jnp.sum(mine & ~jnp.any(given, axis=-1), dtype=jnp.float32), count)
    metrics["gate"] = (jnp.sum(assigned.weights * given), pairs)
    # Of each block: 1 where all experts take equally many, 1 / E where one takes all. Shared ones take every token.
    routed = jnp.sum(assigned.experts[..., None] == numbers[: pool.kind.experts], axis=(1, 2), dtype=jnp.float32)
    total = jnp.sum(routed, axis=1)
    even = total**2 / jnp.maximum(pool.kind.experts * jnp.sum(routed**2, axis=1), 1.0)
    metrics["balance"] = (jnp.sum(even), jnp.sum(total > 0, dtype=jnp.float32))
    if isinstance(pool.kind, TokenChoice):
        asked = count * (pool.kind.top_k + pool.kind.shared)
        metrics["dropped"] = (asked - pairs, asked)
    return {f"{pool.name}/{name}": value for name, value in metrics.items()}
