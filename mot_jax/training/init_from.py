"""Starting from another run's parameters, dense ones copied into every group where the new model is untied."""

import functools

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mot_jax.config import Model
from mot_jax.errors import CheckpointError
from mot_jax.nn import transformer
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.checksum import path_name
from mot_jax.training.run_directory import CHECKPOINTS
from mot_jax.training.state import parameter_shardings


def init_from(source: str, model: Model, mesh: Mesh) -> tuple[dict, int, dict]:
    """(parameters of `model` on the mesh, the step they are of, the checkpoint's meta).

    A stored parameter without the group axis that the model's has is copied into every group, which computes the same
    function (sparse upcycling, arXiv 2212.05055, and the start of branch-train-mix do so too); one of the same shape is
    taken as it is.

    Args:
      source: `Train.init_from`, a run directory, or `directory@step`.

    Raises:
      CheckpointError: no checkpoint, or a parameter that is missing, left over, or of a shape that fits neither way.
    """
    directory, step = split_step(source)
    with Checkpoints(epath.Path(directory) / CHECKPOINTS) as checkpoints:
        step, meta = checkpoints.meta(step)
        stored = {name: tuple(array["shape"]) for name, array in meta["arrays"]["params"].items()}
        where = f"Train.init_from: {checkpoints.directory}: checkpoint {step}"
        match = functools.partial(_stored_form, where, stored, mesh)
        shardings = parameter_shardings(model, mesh)
        asked = jax.tree_util.tree_map_with_path(
            match, transformer.abstract(model), shardings, transformer.logical_axes(model)
        )
        step, params = checkpoints.restore_params(asked, step)
    shapes = jax.tree.map(lambda leaf: leaf.shape, transformer.abstract(model))
    copy = jax.jit(lambda params: jax.tree.map(jnp.broadcast_to, params, shapes), out_shardings=shardings)
    return copy(params), step, meta


def split_step(source: str) -> tuple[str, int | None]:
    """`directory@step` in two; without a step, or where that is a directory itself, all of it and None."""
    directory, at, step = source.rpartition("@")
    if at and step.isdigit() and not epath.Path(source).exists():
        return directory, int(step)
    return source, None


def _stored_form(where: str, stored: dict, mesh: Mesh, path: tuple, leaf, sharding: NamedSharding, axes: tuple):
    """What to ask the checkpoint for: the parameter itself, or its dense form to be copied into every group."""
    name = path_name(path)
    shape = stored.get(name, leaf.shape)  # a missing one is named when it is asked for
    if shape == leaf.shape:
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
    if axes[0] == "group" and shape == leaf.shape[1:]:
        dense = NamedSharding(mesh, PartitionSpec(*sharding.spec[1:]))
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=dense)
    expected = f"{leaf.shape} or {leaf.shape[1:]}" if axes[0] == "group" else f"{leaf.shape}"
    raise CheckpointError(f"{where}: parameter {name} has shape {shape}, expected {expected}")
