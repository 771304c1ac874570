"""AdamW of memory tables, apart from all other parameters: of every row, or only of the rows that were read."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from kernels_pallas.embedding_bag import RowsGradient
from mot_jax.config import Optimizer
from mot_jax.training.optimizer import make_schedule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ValuesState:
    """Moments of the gradient, float32 and shaped like the tables, and how many updates there were."""

    first: Any
    second: Any
    count: Any


def init(values: dict) -> ValuesState:
    """For a tree {"values": tables}, so that moments are named as their tables are."""
    zeros = jax.tree.map(lambda table: jnp.zeros(table.shape, jnp.float32), values)
    return ValuesState(zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros((), jnp.int32))


def gradient_norm(grads: dict) -> Float32[Array, ""]:
    """Of all tables together; of gradients by row the rows that were read."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(grad.astype(jnp.float32))) for grad in map(_sums, _leaves(grads))))


def update(
    config: Optimizer, steps: int, values: dict, state: ValuesState, grads: dict, apply: Array, key: Array
) -> tuple[dict, ValuesState]:
    """The tables after one AdamW update (arXiv 1711.05101), with the rate, decay and clipping of `config.values`.

    A gradient that is a `RowsGradient` touches its rows alone: the moments of the others do not decay (as in "lazy"
    Adam), and neither do they. So it is with `update = "touched"` for rows whose dense gradient is zero. Tables in
    bfloat16 are rounded stochastically, so that small updates are not lost.

    Args:
      values, state.first, state.second, grads: trees {"values": {name: ...}}.
      apply: whether to, bool[]; else nothing changes.
      key: of the step's random numbers.
    """
    own = config.values
    schedule = make_schedule(dataclasses.replace(config, learning_rate=own.learning_rate), steps)
    count = state.count + 1
    norm = gradient_norm(grads)
    clip = jnp.minimum(1.0, own.clip_norm / jnp.maximum(norm, 1e-12)) if own.clip_norm else jnp.float32(1)
    scalars = {
        "rate": schedule(state.count),
        "clip": clip,
        "first": 1 - config.b1 ** count.astype(jnp.float32),
        "second": 1 - config.b2 ** count.astype(jnp.float32),
    }

    def rule(p, m, v, g, key):
        g = g.astype(jnp.float32) * scalars["clip"]
        m, v = config.b1 * m + (1 - config.b1) * g, config.b2 * v + (1 - config.b2) * g * g
        step = (m / scalars["first"]) / (jnp.sqrt(v / scalars["second"]) + config.epsilon)
        new = p.astype(jnp.float32) - scalars["rate"] * (step + own.weight_decay * p.astype(jnp.float32))
        return (stochastically_rounded(new, key) if p.dtype == jnp.bfloat16 else new), m, v

    found = []
    leaves = _leaves(values), _leaves(state.first), _leaves(state.second), _leaves(grads)
    for number, (p, m, v, g) in enumerate(zip(*leaves, strict=True)):
        own_key = jax.random.fold_in(key, number)
        if isinstance(g, RowsGradient):
            found.append(_touched(rule, p, m, v, g, apply, own_key))
        elif own.update == "touched":
            read = jnp.any(g != 0, axis=(1, 2), keepdims=True) & apply
            news = rule(p, m, v, g, own_key)
            found.append(tuple(jnp.where(read, new, old) for new, old in zip(news, (p, m, v), strict=True)))
        else:
            found.append(
                jax.lax.cond(apply, lambda p, m, v, g, k: rule(p, m, v, g, k), lambda *a: a[:3], p, m, v, g, own_key)
            )
    structure = jax.tree.structure(values)
    tables, first, second = (jax.tree.unflatten(structure, each) for each in zip(*found, strict=True))
    return tables, ValuesState(first, second, state.count + apply.astype(jnp.int32))


def _touched(rule, p, m, v, gradient: RowsGradient, apply: Array, key: Array) -> tuple[Array, Array, Array]:
    """The rule on the rows of the gradient; those at N, past the last, are nobody's."""
    rows = jnp.where(apply, gradient.rows, p.shape[0])

    def picked(x):
        return x.at[rows].get(mode="fill", fill_value=0)

    news = rule(*map(picked, (p, m, v)), gradient.values.reshape(-1, *p.shape[1:]), key)
    return tuple(
        old.at[rows].set(new, mode="drop", indices_are_sorted=True) for old, new in zip((p, m, v), news, strict=True)
    )


def stochastically_rounded(x: Float32[Array, "..."], key: Array) -> Array:
    """bfloat16: of the two neighbours each as often as x is near to it, so that the mean is x."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
    rounded = jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _leaves(tree: dict) -> list:
    return jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, RowsGradient))


def _sums(grad):
    return grad.values if isinstance(grad, RowsGradient) else grad
