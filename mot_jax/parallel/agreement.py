"""A number on which all processes agree."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mot_jax.config.rules import AXES
from mot_jax.parallel.mesh import replicated


class Agreement:
    """The largest number that any process gave: one integer to and from each device.

    All processes call the same methods in the same order.
    """

    def __init__(self, mesh: Mesh):
        self._alone = jax.process_count() == 1
        self._sharding, self._mesh = NamedSharding(mesh, PartitionSpec(AXES)), mesh
        self._max = jax.jit(jnp.max, out_shardings=replicated(mesh))
        self._asked = None

    def soon(self, number: int) -> int:
        """Of what was given the last time, so that nothing waits for it; 0 the first time. Alone: of this number."""
        if self._alone:
            return number
        before, self._asked = self._asked, self._ask(number)
        return 0 if before is None else int(before)

    def now(self, number: int) -> int:
        """Of what is given now; waits for all."""
        return number if self._alone else int(self._ask(number))

    def _ask(self, number: int) -> jax.Array:
        given = np.full(len(self._mesh.local_devices), number, np.int32)
        return self._max(jax.make_array_from_process_local_data(self._sharding, given, (self._mesh.size,)))
