"""The tables that memory layers read: parameters at the root of the model, each there once."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int32

from mot_jax.config import RULES, Model, Rules
from mot_jax.config.memory import Memory, table_shape, value_dim
from mot_jax.nn.context import Recall
from mot_jax.parallel.value_exchange import read

AXES = ("value_row", "value_column", None)


def tables(model: Model, rngs: nnx.Rngs) -> nnx.Dict:
    """Normal with the standard deviation width^-1/2, by name (`Memory.table_of`)."""
    memory: Memory = model.memory
    shape = table_shape(memory, model.dim)
    std = value_dim(memory, model.dim) ** -0.5

    def table():
        return nnx.Param((std * jax.random.normal(rngs.params(), shape)).astype(memory.dtype), axes=AXES)

    return nnx.Dict({name: table() for name in dict.fromkeys(map(memory.table_of, memory.layers))})


def recall_from(model: Model, values: dict, rules: Rules = RULES, *, constant: bool = False) -> Recall:
    """How layers read these tables; inside a manual mesh they are one device's parts. `constant`: without gradients."""

    def recall(layer: int, rows: Int32[Array, "P K"], weights: Float32[Array, "P K"]) -> Float[Array, "P Dv"]:
        table = jnp.asarray(values[model.memory.table_of(layer)])
        return read(table, rows, weights, rules["value_row"], constant=constant)

    return recall
