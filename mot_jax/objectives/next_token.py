"""The training objective: weighted next-token loss over one count for all modalities.

Loss = sum_i w(m_i) * loss_weight_i * l_i / sum_i 1[loss_weight_i > 0], with m_i the modality of the TARGET (routing
goes by the INPUT's) and both sums over every device and microbatch of the optimizer step. Per-modality means are
metrics, not the objective.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mot_jax.batch import Batch
from mot_jax.config import RULES, Model, Rules
from mot_jax.config.rules import split_in_place
from mot_jax.nn import transformer
from mot_jax.nn.context import Noise, Recall
from mot_jax.nn.report import Metrics
from mot_jax.objectives.cross_entropy import cross_entropy
from mot_jax.vocabulary import Vocabulary

ROUTER = "router/"  # what the names of a layer's own metrics begin with


@dataclasses.dataclass(frozen=True)
class Routing:
    """Of all layers: the sums of `Report`, and by layer what memories read."""

    balance: Float[Array, ""]
    auxiliary: Float[Array, ""]
    reads: dict[int, tuple[Array, Array]]


def target_count(batch: Batch) -> Float[Array, ""]:
    """Number of this device's tokens that have something to predict."""
    return jnp.sum(batch.loss_weights > 0, dtype=jnp.float32)


def loss_sum(
    model: Model,
    params: dict,
    batch: Batch,
    vocabulary: Vocabulary,
    *,
    z_loss: float = 0.0,
    modality_weights: dict[str, float] | None = None,
    causal: bool = False,
    noise: Noise | None = None,
    recall: Recall | None = None,
    rules: Rules = RULES,
) -> tuple[Float[Array, ""], Metrics, Routing]:
    """This device's numerator of the objective, the sums and counts of its metrics, and what its layers add.

    `causal`, `noise`, `recall` and `rules` are `transformer.apply`'s. Metrics: "loss" and "loss/<modality>" are plain
    cross-entropy in nats over target tokens, by the target's modality; "modality_tokens/<modality>" counts input
    tokens; "router/<layer>/..." is what a layer reports of its routing.
    """
    hidden, reports = transformer.apply(model, params, batch, causal=causal, noise=noise, recall=recall, rules=rules)
    weights_of = modality_weights or {}
    by_modality = np.asarray([weights_of.get(name, 1.0) for name in vocabulary.names], np.float32)
    targets = batch.targets.reshape(-1)
    target_modality = jnp.asarray(vocabulary.token_modality)[targets]
    loss_weights = batch.loss_weights.reshape(-1)
    total, nll = cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        transformer.head_table(model, params, hidden.dtype, rules),
        targets,
        loss_weights * jnp.asarray(by_modality)[target_modality],
        z_loss,
        split_in_place(rules, "vocab"),
    )
    counted = loss_weights > 0
    metrics = {"loss": (jnp.sum(nll * counted), jnp.sum(counted, dtype=jnp.float32))}
    for index, name in enumerate(vocabulary.names):
        mine = counted & (target_modality == index)
        metrics[f"loss/{name}"] = (jnp.sum(nll * mine), jnp.sum(mine, dtype=jnp.float32))
        inputs = (batch.modality_ids == index) & (batch.segment_ids > 0)
        metrics[f"modality_tokens/{name}"] = (jnp.sum(inputs, dtype=jnp.float32), jnp.float32(1))
    for layer, report in reports.items():
        metrics |= {f"{ROUTER}{layer}/{name}": value for name, value in report.metrics.items()}
    zero = jnp.zeros((), jnp.float32)
    balance = sum((report.balance for report in reports.values()), zero)
    auxiliary = sum((report.auxiliary for report in reports.values()), zero)
    reads = {layer: report.reads for layer, report in reports.items() if report.reads is not None}
    return total, metrics, Routing(balance, auxiliary, reads)
