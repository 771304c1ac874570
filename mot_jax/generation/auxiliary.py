"""Whether a model can generate at all."""

import os

from mot_jax.config import Model, sees_future
from mot_jax.errors import UserError


def check_causal(model: Model, what: str, run_dir: str | os.PathLike = "RUN") -> None:
    """Raises UserError, with the command that helps, where only auxiliary routers could generate and there are none.

    Args:
      what: that needs to generate; the message begins with it.
      run_dir: the run that the command would start from.
    """
    if sees_future(model) and not model.auxiliary_routers:
        raise UserError(
            f"{what}: this model's routers compare a token with later ones, so it cannot generate without auxiliary "
            f"routers; train them with: python train.py --gin_file {run_dir}/config.gin --gin_file auxiliary_routers "
            f"--gin.Train.init_from={run_dir}"
        )
