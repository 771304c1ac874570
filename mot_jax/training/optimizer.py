"""AdamW with warmup, a schedule and global-norm clipping."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mot_jax.config import Optimizer

NOT_DECAYED = ("gain", "bias")


def make_optimizer(
    config: Optimizer, steps: int, only: str | None = None
) -> tuple[optax.GradientTransformation, Callable]:
    """The transformation of gradients into updates, and its schedule: updates done -> learning rate.

    Weight decay is decoupled (arXiv 1711.05101), multiplied by the learning rate, and acts on every matrix: the
    embedding and the head included, norm gains and biases excluded. Gradients are clipped before anything else; an
    `update` that is told their `norm` does not take it again.
    With `only` (`Train.only`) nothing but these parameters moves or has moments.
    """
    schedule = make_schedule(config, steps)
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    tx = optax.chain(clip_by_norm(config.clip_norm), adamw) if config.clip_norm else adamw
    if only is not None:
        tx = optax.partition({True: tx, False: optax.set_to_zero()}, is_auxiliary)
    return tx, schedule


def clip_by_norm(most: float) -> optax.GradientTransformationExtraArgs:
    """`optax.clip_by_global_norm`, whose `update` may be told the norm: of a sharded model, a collective less."""

    def update(gradients, state, params=None, *, norm=None, **_):
        norm = global_norm(gradients) if norm is None else norm
        scale = jnp.minimum(1.0, most / norm)  # NaN of infinite gradients, as they are
        return jax.tree.map(lambda gradient: gradient * scale.astype(gradient.dtype), gradients), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def global_norm(tree: Any) -> Float[Array, ""]:
    """The root of the sum of all squares, in float32.

    As products: XLA's CPU compiler writes a sum's squares to memory first, which for a MoT takes longer than the sum.
    Not `vdot`, which flattens, and so would gather what is sharded.
    """
    whole = functools.partial(jnp.tensordot, precision="highest", preferred_element_type=jnp.float32)
    return jnp.sqrt(sum(whole(x, x, x.ndim) for x in jax.tree.leaves(tree)))


def make_schedule(config: Optimizer, steps: int) -> Callable:
    """Learning rate by updates done before: a linear rise that peaks at update `warmup_steps`, then the decay.

    Update `steps` gets `final_fraction` of the peak (`constant`: the peak). A run shorter than the warmup ends within
    the rise. On a Python or numpy number it computes in numpy, so reading it never waits for a device.
    """
    warmup = config.warmup_steps
    span = max(steps - warmup, 1)

    def schedule(count):
        xp = np if isinstance(count, int | np.generic) else jnp
        progress = xp.clip((count + 1 - warmup) / span, 0.0, 1.0)
        if config.schedule == "cosine":
            remaining = 0.5 * (1.0 + xp.cos(np.pi * progress))
        elif config.schedule == "linear":
            remaining = 1.0 - progress
        else:
            remaining = xp.ones_like(progress)
        decay = config.final_fraction + (1.0 - config.final_fraction) * remaining
        return config.learning_rate * xp.where(count + 1 < warmup, (count + 1) / max(warmup, 1), decay)

    return schedule


def decayed(params: dict) -> dict:
    """True where weight decay acts. By name, not by rank: an untied gain [G, D] is a gain, an untied bias a bias."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NOT_DECAYED, params)


def is_auxiliary(params: dict) -> dict:
    """True at the parameters of auxiliary routers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: any(key.key == "auxiliary" for key in path), params)
