"""Whether a model can generate at all."""

import os

from mot_jax.config import Model, sees_future
from mot_jax.errors import UserError


def cannot_generate(model: Model, run_dir: str | os.PathLike = "RUN") -> str | None:
    """Why a model cannot generate, with the command that helps a run in `run_dir`; None where it can."""
    if not sees_future(model) or model.auxiliary_routers:
        return None
    return (
        "this model's routers compare a token with later ones, so it cannot generate without auxiliary routers; train "
        f"them with: python train.py --gin_file {run_dir}/config.gin --gin_file auxiliary_routers "
        f"--gin.Train.init_from={run_dir}"
    )


def check_causal(model: Model, run_dir: str | os.PathLike = "RUN") -> None:
    """Raises UserError where a model cannot generate."""
    if reason := cannot_generate(model, run_dir):
        raise UserError(f"generate: {reason}")
