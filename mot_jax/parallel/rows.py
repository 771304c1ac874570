"""Which rows of a global batch are whose, and making the batch of what each process has."""

import jax
import numpy as np
from jax.sharding import Mesh

from mot_jax.batch import Batch
from mot_jax.errors import ConfigError
from mot_jax.parallel.mesh import batch_sharding


def rows_by_process(mesh: Mesh, rows: int) -> dict[int, list[int]]:
    """The rows that lie on each process's devices, ascending; devices along `tensor` have the same ones."""
    found: dict[int, set[int]] = {}
    for device, (index, *_) in batch_sharding(mesh).devices_indices_map((rows,)).items():
        found.setdefault(device.process_index, set()).update(range(*index.indices(rows)))
    return {process: sorted(of) for process, of in sorted(found.items())}


def shards_by_process(held: dict[int, list[int]], rows: int, shards: int) -> dict[int, list[int]]:
    """The packed streams that make the rows which each process holds.

    Raises:
      ConfigError: the rows of a stream would lie on several processes.
    """
    each = rows // shards
    found = {process: sorted({row // each for row in own}) for process, own in held.items()}
    if any(len(held[process]) != each * len(own) for process, own in found.items()):
        parts = len({tuple(own) for own in held.values()})
        raise ConfigError(
            f"Data.shards: {shards} packed streams cannot be divided among {len(held)} processes that hold "
            f"{parts} parts of the {rows} rows; expected a multiple of {parts}, fixed for the life of a run"
        )
    return found


def own_shards(mesh: Mesh, rows: int, shards: int) -> list[int]:
    """The packed streams of this process; raises ConfigError, in all, where they cannot be divided."""
    return shards_by_process(rows_by_process(mesh, rows), rows, shards)[jax.process_index()]


def place(own: Batch, mesh: Mesh, rows: int) -> Batch:
    """The global batch of `rows`, from each process's own in ascending order."""
    shapes = jax.tree.map(lambda x: (rows, *x.shape[1:]), own)
    return jax.make_array_from_process_local_data(batch_sharding(mesh), own, shapes)


def place_whole(batch: Batch, mesh: Mesh) -> Batch:
    """A batch that every process has whole, as a global one."""
    rows = len(batch.tokens)
    own = np.asarray(rows_by_process(mesh, rows)[jax.process_index()])
    return place(jax.tree.map(lambda x: x[own], batch), mesh, rows)
