"""Gradients of memory tables apart from all others: in float32 whatever the tables are, whole or by the rows read.

The tables are constants of the loss. Zeros are added to what each memory layer reads, and the gradient of those zeros,
with the rows and weights that were read, says what each row's gradient is.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float32

from kernels_pallas.embedding_bag import RowsGradient, embedding_bag_rows_gradient
from mot_jax.config import Model, Rules
from mot_jax.config.memory import value_dim
from mot_jax.nn.context import Recall
from mot_jax.nn.values import recall_from
from mot_jax.parallel.collectives import axis_size
from mot_jax.parallel.value_exchange import table_gradient

Reads = dict[int, tuple[Any, Any]]  # layer -> rows [..., P, K], weights [..., P, K]; arrays or their shapes


def taps(model: Model, rules: Rules, reads: Reads) -> dict[int, Array]:
    """The zeros, for reads of these shapes: of the columns that this device holds."""
    width = value_dim(model.memory, model.dim) // axis_size(rules["value_column"])
    return {layer: jnp.zeros((*rows.shape[:-1], width), model.memory.dtype) for layer, (rows, _) in reads.items()}


def recall_with(model: Model, rules: Rules, tables: dict, taps: dict[int, Array]) -> Recall:
    """Reads the tables, which get no gradient, and adds the zeros."""
    recall = recall_from(model, tables, rules, constant=True)
    return lambda layer, rows, weights: recall(layer, rows, weights) + taps[layer]


def whole(
    model: Model, rules: Rules, tables: dict, d_taps: dict[int, Array], reads: Reads
) -> dict[str, Float32[Array, "N C w"]]:
    """Of this device's part of each table, all layers that read it together."""
    found = {name: jnp.zeros(table.shape, jnp.float32) for name, table in tables.items()}
    for layer, dy in d_taps.items():
        name = model.memory.table_of(layer)
        found[name] += table_gradient(tables[name].shape, *reads[layer], dy, rules["value_row"])
    return found


def by_row(model: Model, d_taps: dict[int, Array], reads: Reads) -> dict[str, RowsGradient]:
    """Of each table that is not split, all layers (and leading axes: microbatches) that read it together."""
    memory, found = model.memory, {}
    for name in dict.fromkeys(map(memory.table_of, memory.layers)):
        layers = [layer for layer in memory.layers if memory.table_of(layer) == name]

        def joined(of, layers=layers):
            return jnp.concatenate([of(layer).reshape(-1, of(layer).shape[-1]) for layer in layers])

        found[name] = embedding_bag_rows_gradient(
            joined(lambda layer: d_taps[layer]),
            joined(lambda layer: reads[layer][0]),
            joined(lambda layer: reads[layer][1]),
            num_rows=memory.num_values,
        )
    return found
