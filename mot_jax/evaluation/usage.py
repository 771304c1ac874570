"""How evenly a model's memories use their values: over a set of batches, how much each value was read."""

import dataclasses
import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32

from mot_jax.batch import Batch
from mot_jax.config import Run, rules_with, sees_future
from mot_jax.config.rules import BATCH_AXES
from mot_jax.nn import transformer
from mot_jax.parallel.collectives import axis_size, sum_over
from mot_jax.parallel.mesh import batch_sharding
from mot_jax.training.state import parameter_shardings

MEMORY = "memory/"  # what the names of its metrics begin with


@dataclasses.dataclass(frozen=True)
class Usage:
    """Of one layer's values: the share that was read at all, and the entropy of how much each was, in nats."""

    used: float
    entropy: float
    kl_to_uniform: float  # log N - entropy


def memory_usage(run: Run, params: dict, batches: Iterable[Batch], mesh: Mesh) -> dict[int, Usage]:
    """By layer, from the weights that all tokens of the batches gave each value (arXiv 1907.05242, section 4.3).

    `run.model` is resolved. Nothing for a model without memories.
    """
    if run.model.memory is None:
        return {}
    params = jax.device_put(params, parameter_shardings(run.model, mesh, rules_with(run.parallel.rules)))
    add, summarise = _adder(run, mesh), jax.jit(_summary)
    totals = None
    for batch in batches:
        totals = add(params, jax.device_put(batch, batch_sharding(mesh)), totals)
    return {layer: Usage(*map(float, summarise(total))) for layer, total in (totals or {}).items()}


def usage_metrics(usage: dict[int, Usage]) -> dict[str, float]:
    """`memory/<layer>/used`, `entropy` and `kl_to_uniform`, for a line of metrics."""
    by_layer = {layer: dataclasses.asdict(of) for layer, of in usage.items()}
    return {f"{MEMORY}{layer}/{name}": value for layer, of in by_layer.items() for name, value in of.items()}


@functools.lru_cache(maxsize=8)
def _adder(run: Run, mesh: Mesh):
    """(params, batch, each layer's weights so far, or None) -> those with the batch's; split as tables' rows are."""
    model = dataclasses.replace(run.model, selection_groups=run.model.selection_groups * run.train.accumulation)
    causal, rules = not sees_future(model), rules_with(run.parallel.rules)
    axis = rules["value_row"]

    def one(params, batch: Batch) -> dict[int, Float[Array, " n"]]:
        reports = transformer.apply(model, params, batch, causal=causal, rules=rules)[1]
        found = {}
        for layer, report in reports.items():
            if report.reads is None:
                continue
            rows, weights = report.reads
            given = jnp.zeros(model.memory.num_values, jnp.float32).at[rows].add(weights, mode="drop")
            given = sum_over(given, tuple(other for other in BATCH_AXES if other != axis))
            if axis_size(axis) > 1:
                given = jax.lax.psum_scatter(given, axis, tiled=True)
            found[layer] = given
        return found

    specs = transformer.partition_specs(run.model, rules), PartitionSpec(BATCH_AXES)
    layers = dict.fromkeys(model.memory.layers, PartitionSpec(axis))
    given = jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=layers, check_vma=False)

    @jax.jit
    def add(params, batch, totals):
        new = given(params, batch)
        return new if totals is None else jax.tree.map(jnp.add, totals, new)

    return add


def _summary(total: Float32[Array, " N"]) -> tuple[Array, Array, Array]:
    share = total / jnp.maximum(jnp.sum(total), 1e-30)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0))
    return jnp.mean(total > 0, dtype=jnp.float32), entropy, jnp.log(jnp.float32(total.shape[0])) - entropy
