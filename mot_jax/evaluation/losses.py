"""Held-out next-token loss and perplexity, by the target's modality and over all."""

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mot_jax.batch import Batch
from mot_jax.config import Parallel, Run, rules_with, sees_future
from mot_jax.config.rules import BATCH_AXES
from mot_jax.errors import ConfigError
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.state import parameter_shardings
from mot_jax.training.step import make_loss_eval
from mot_jax.vocabulary import Vocabulary

ALL = "all"


@dataclasses.dataclass(frozen=True)
class HeldOutLoss:
    """Mean cross-entropy in nats over `tokens` targets; NaN where there is none."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return float(np.exp(self.loss))


def evaluation_mesh(run: Run) -> Mesh:
    """The run's own mesh where this machine, the batch's rows and its blocks allow it, else one device."""
    try:
        mesh = make_mesh(run.parallel)
    except ConfigError:
        return make_mesh(Parallel(), jax.devices()[:1])
    parts = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    split = run.data.global_batch_size % parts or (
        sees_future(run.model) and run.model.selection_groups * run.train.accumulation % parts
    )
    return make_mesh(Parallel(), jax.devices()[:1]) if split else mesh


def heldout_losses(
    run: Run, vocabulary: Vocabulary, params: Mapping, batches: Iterable[Batch], mesh: Mesh, *, causal: bool = False
) -> dict[str, HeldOutLoss]:
    """One pass over the batches -> "all" and each modality's loss.

    Args:
      run: with its model resolved.
      params: the model's parameters, placed anywhere.
      causal: with auxiliary routers in place of what would see later tokens.
    """
    evaluate = make_loss_eval(run, vocabulary, mesh, causal=causal)
    params = jax.device_put(params, parameter_shardings(run.model, mesh, rules_with(run.parallel.rules)))
    names = {ALL: "loss"} | {name: f"loss/{name}" for name in vocabulary.names}
    # float64 on the host: float32 would stop counting tokens at 2**24.
    sums = {name: np.zeros(2) for name in names}
    for batch in batches:
        metrics = evaluate(params, batch)
        for name, metric in names.items():
            sums[name] += np.asarray(jax.device_get(metrics[metric]), np.float64)
    return {
        name: HeldOutLoss(loss=float(total / count) if count else math.nan, tokens=int(count))
        for name, (total, count) in sums.items()
    }
