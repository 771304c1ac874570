"""Which learning rate an arm trains with: the one whose short run ends with the lowest held-out loss."""

import dataclasses
import math
from collections.abc import Mapping

from mot_jax.errors import DataError
from mot_jax.experiments.sweep import Job
from mot_jax.training.run_directory import METRICS
from mot_jax.training.writers import read_metrics


@dataclasses.dataclass(frozen=True)
class Choice:
    """`losses` by learning rate, infinite where a run diverged; `at_edge`: a wider list might find a better one."""

    rate: float
    losses: dict[float, float]

    @property
    def at_edge(self) -> bool:
        return len(self.losses) > 1 and self.rate in (min(self.losses), max(self.losses))

    def as_json(self) -> dict:
        losses = {str(rate): loss if math.isfinite(loss) else None for rate, loss in self.losses.items()}
        return {"rate": self.rate, "losses": losses, "at_edge": self.at_edge}


def choose(jobs: Mapping[float, Job]) -> Choice:
    """Of one arm's finished runs.

    Raises:
      DataError: none has a held-out loss.
    """
    losses = {rate: _last_loss(job) for rate, job in jobs.items()}
    if not any(map(math.isfinite, losses.values())):
        names = ", ".join(job.directory.name for job in jobs.values())
        raise DataError(f"no held-out loss to choose a learning rate by in {names}; expected Train.eval_every above 0")
    return Choice(min(losses, key=losses.get), losses)


def _last_loss(job: Job) -> float:
    """By auxiliary routers where there are some: what the finished model would be judged by."""
    lines = [line for line in read_metrics(job.directory / METRICS) if line["split"] == "validation"]
    loss = lines[-1].get("causal_loss", lines[-1].get("loss")) if lines else None
    return math.inf if loss is None else loss
