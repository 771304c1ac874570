"""What training carries from step to step, and where each part of it lives on the mesh."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mot_jax.config import RULES, Model, Rules
from mot_jax.nn import transformer
from mot_jax.parallel.mesh import like_parameters, replicated, shardings
from mot_jax.training import values


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """params and opt_state are trees of arrays; the counters are int32 scalars.

    `step` counts optimizer steps taken or skipped, `skipped` those whose loss or gradient was not finite, `bad_steps`
    how many of the latest in a row were.
    """

    params: Any
    opt_state: Any
    step: Any
    bad_steps: Any
    skipped: Any


def parameter_shardings(model: Model, mesh: Mesh, rules: Rules = RULES) -> dict:
    """A NamedSharding for every parameter; raises ConfigError where a mesh axis does not divide a dimension."""
    return shardings(transformer.abstract(model), transformer.logical_axes(model), mesh, rules)


def init_optimizer(params: dict, tx: optax.GradientTransformation, only: str | None = None) -> Any:
    """The optimizer's state: of memory tables their own, of all else that of `tx`.

    Args:
      only: `Train.only`; with it tables stay as they are, and have none.
    """
    if "values" not in params:
        return tx.init(params)
    rest, tables = split_values(params)
    return {"rest": tx.init(rest)} | ({} if only else {"values": values.init(tables)})


def split_values(params: dict) -> tuple[dict, dict]:
    """(all else, the memory tables), each a tree of its own from the root."""
    return {k: v for k, v in params.items() if k != "values"}, {"values": params["values"]}


def state_shardings(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, rules: Rules = RULES, *, only: str | None = None
) -> TrainState:
    """The state's tree of shardings; optimizer moments lie where their parameters do."""
    params = parameter_shardings(model, mesh, rules)
    shapes = transformer.abstract(model)
    opt_state = like_parameters(jax.eval_shape(lambda p: init_optimizer(p, tx, only), shapes), shapes, params, mesh)
    counter = replicated(mesh)
    return TrainState(params=params, opt_state=opt_state, step=counter, bad_steps=counter, skipped=counter)


def fresh_state(params: dict, tx: optax.GradientTransformation, only: str | None = None) -> TrainState:
    """Step 0 with these parameters."""
    zero = jnp.zeros((), jnp.int32)
    opt_state = init_optimizer(params, tx, only)
    return TrainState(params=params, opt_state=opt_state, step=zero, bad_steps=zero, skipped=zero)


def init_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, seed: int, rules: Rules = RULES
) -> TrainState:
    """A new state, made where it will live; the values do not depend on the mesh."""
    make = jax.jit(
        lambda key: fresh_state(transformer.init(model, key), tx),
        out_shardings=state_shardings(model, tx, mesh, rules),
    )
    return make(jax.random.key(seed))


def abstract_state(
    model: Model, tx: optax.GradientTransformation, mesh: Mesh, rules: Rules = RULES, *, only: str | None = None
) -> TrainState:
    """The state as shapes with shardings: what a checkpoint is restored into."""
    shapes = jax.eval_shape(lambda params: fresh_state(params, tx, only), transformer.abstract(model))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(model, tx, mesh, rules, only=only),
    )
