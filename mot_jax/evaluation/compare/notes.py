"""What a comparison leaves out, or takes earlier than one would think: a line for each."""

from collections.abc import Sequence

from mot_jax.evaluation.compare.arms import Arm
from mot_jax.evaluation.compare.matching import Curve, common_steps


def missing(arm: Arm, curves: Sequence[Curve], split: str, title: str) -> list[str]:
    """Of one kind of loss, named by `title`: none, none that the seeds share, not of all seeds, not of the last step.

    Args:
      curves: of the runs that have this loss.
    """
    if not curves:
        if arm.sees_future and any(line["split"] == split for run in arm.runs for line in run.lines):
            return [
                f"{arm.name}: no {title}: its routers choose by later tokens, and it trained no others for generation "
                "(Model.auxiliary_routers)"
            ]
        return [f"{arm.name}: its runs have no {title}"]
    notes = []
    if len(curves) < len(arm.runs):
        notes.append(f"{arm.name}: {title} of {len(curves)} of {len(arm.runs)} seeds, the others have none")
    steps = common_steps(curves)
    if not len(steps):
        return [*notes, f"{arm.name}: no {title}: its seeds have none at the same step"]
    if steps[-1] < arm.steps:
        whose = "all its seeds have" if len(curves) > 1 else "it has"
        notes.append(f"{arm.name}: the last {title} that {whose} is of step {steps[-1]:,} of {arm.steps:,}")
    return notes
