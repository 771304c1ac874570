"""The gradient of memory tables by the rows that were read, without one for all the others.

The tables are constants of the loss. Zeros are added to what each memory layer reads, and the gradient of those zeros,
with the rows and weights that were read, says what each row's gradient is.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kernels_pallas.embedding_bag import RowsGradient, embedding_bag_rows_gradient
from mot_jax.config import Model
from mot_jax.config_memory import value_dim
from mot_jax.nn.context import Recall
from mot_jax.nn.values import recall_from

Reads = dict[int, tuple[Any, Any]]  # layer -> rows [..., P, K], weights [..., P, K]; arrays or their shapes


def taps(model: Model, reads: Reads) -> dict[int, Array]:
    """The zeros, for reads of these shapes."""
    width = value_dim(model.memory, model.dim)
    return {layer: jnp.zeros((*rows.shape[:-1], width), model.memory.dtype) for layer, (rows, _) in reads.items()}


def recall_with(model: Model, tables: dict, taps: dict[int, Array]) -> Recall:
    """Reads the tables, which get no gradient, and adds the zeros."""
    recall = recall_from(model, jax.tree.map(jax.lax.stop_gradient, tables))
    return lambda layer, rows, weights: recall(layer, rows, weights) + taps[layer]


def row_gradients(model: Model, d_taps: dict[int, Array], reads: Reads) -> dict[str, RowsGradient]:
    """Of each table, all layers (and leading axes: microbatches) that read it together."""
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
