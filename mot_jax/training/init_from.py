"""Starting from another run's parameters, copied into every group and expert of a model that has more of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mot_jax.config import RULES, Model, Pool, Rules, expand, pools
from mot_jax.config.experts import AverageKey
from mot_jax.errors import CheckpointError
from mot_jax.nn import transformer
from mot_jax.training.checkpoint import Checkpoints
from mot_jax.training.checksum import path_name
from mot_jax.training.run_directory import CHECKPOINTS
from mot_jax.training.state import parameter_shardings

NEW = ("router", "auxiliary", "memory", "values")  # in the paths of parameters that the source may lack


def init_from(source: str, model: Model, mesh: Mesh, seed: int, rules: Rules = RULES) -> tuple[dict, int, dict, dict]:
    """(parameters of `model` on the mesh, the step they are of, the checkpoint's meta, where its data stood).

    A stored parameter without the group axis that the model's has is copied into every group, which computes the same
    function (sparse upcycling, arXiv 2212.05055, and the start of branch-train-mix do so too); a feed-forward, shared
    or a group's own, into every expert of each pool it serves (MoMa, arXiv 2407.21770, section 2.5); one of the same
    shape is taken as it is, in the model's dtype. Routers and memories that the source has not are new.

    Args:
      source: `Train.init_from`, a run directory, or `directory@step`.

    Raises:
      CheckpointError: no checkpoint, or a parameter that is missing, left over, or of a shape that fits neither way.
    """
    directory, step = split_step(source)
    shardings, axes = parameter_shardings(model, mesh, rules), transformer.logical_axes(model)
    with Checkpoints(epath.Path(directory) / CHECKPOINTS) as checkpoints:

        def load(step: int) -> tuple[dict, int, dict, dict]:
            meta = checkpoints.meta(step)
            stored = {name: tuple(array["shape"]) for name, array in meta["arrays"]["params"].items()}
            where = f"Train.init_from: {checkpoints.directory}: checkpoint {step}"
            match = functools.partial(_stored_form, where, stored, model, mesh)
            asked = _pruned(jax.tree_util.tree_map_with_path(match, transformer.abstract(model), shardings, axes))
            params = checkpoints.arrays(step, meta, {"params": asked})["params"]
            return params, step, meta, checkpoints.data_state(step, meta)

        params, step, meta, data_state = checkpoints.newest(load, step)

    def fill(params):
        given = dict(jax.tree_util.tree_leaves_with_path(params))

        def one(path, fresh):
            return _spread(given[path], fresh.shape, model, path) if path in given else fresh

        return jax.tree_util.tree_map_with_path(one, transformer.init(model, jax.random.key(seed)))

    return jax.jit(fill, out_shardings=shardings)(params), step, meta, data_state


def split_step(source: str) -> tuple[str, int | None]:
    """`directory@step` in two; without a step, or where that is a directory itself, all of it and None."""
    directory, at, step = source.rpartition("@")
    if at and step.isdigit() and not epath.Path(source).exists():
        return directory, int(step)
    return source, None


def _stored_form(
    where: str, stored: dict, model: Model, mesh: Mesh, path: tuple, leaf, sharding: NamedSharding, axes: tuple
):
    """What to ask the checkpoint for: the parameter itself, the form it is copied from, or None where it is new."""
    name = path_name(path)
    shape = stored.get(name, leaf.shape)  # a missing one is named when it is asked for
    if name not in stored and any(key.key in NEW for key in path):
        return None
    if shape == leaf.shape:
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
    forms = [leaf.shape]
    if axes[0] in ("group", "expert"):
        forms.append(leaf.shape[1:])
    if axes[0] == "expert":
        forms.append((len(_pools(model, path)), *leaf.shape[1:]))
    if axes[0] == "expert" and any(isinstance(pool.kind, AverageKey) for pool in _pools(model, path)):
        raise CheckpointError(f"{where}: copies of {name} would have equal average keys, and most never a token")
    if shape not in forms:
        raise CheckpointError(f"{where}: parameter {name} has shape {shape}, expected {' or '.join(map(str, forms))}")
    # A group's copy or a pool's is small beside the stack: whole along it, split as the stack along the others.
    spec = sharding.spec[1:] if len(shape) < len(leaf.shape) else (None, *sharding.spec[1:])
    return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))


def _spread(x: jax.Array, shape: tuple[int, ...], model: Model, path: tuple) -> jax.Array:
    """A stored parameter as the model's: copied into every group or expert, or each group's into its pool's experts."""
    if x.ndim == len(shape) and x.shape[0] != shape[0]:
        return x[np.repeat(np.arange(x.shape[0]), [pool.kind.stored for pool in _pools(model, path)])]
    return jnp.broadcast_to(x, shape)


def _pools(model: Model, path: tuple) -> tuple[Pool, ...]:
    """Those of the layer that a parameter named layers/<index>/... is in."""
    return pools(model, expand(model)[int(path[1].key)])


def _pruned(tree: dict) -> dict:
    """Without the entries that are None."""
    pruned = {name: _pruned(value) if isinstance(value, dict) else value for name, value in tree.items()}
    return {name: value for name, value in pruned.items() if value is not None and value != {}}
