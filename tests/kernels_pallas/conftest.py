"""What the tests of kernels share: fresh numbers, and the back ends on this machine."""

import secrets

import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import force_gpu_interpret_mode  # public from jax 0.11 on
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.grouped_matmul import gpu_stream
from kernels_pallas.grouped_matmul.api import IMPLEMENTATIONS
from tests.kernels_pallas.grouped import CASES, GROUPS, OTHER_GROUPS, ROWS, TILE, gpu


@pytest.fixture
def rng():
    """Other numbers on every run; pytest shows the seed of a failed one."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


@pytest.fixture(params=[*sorted({*IMPLEMENTATIONS} - {"gpu"}), gpu])
def implementation(request, monkeypatch):
    monkeypatch.setattr(gpu_stream, "MULTIPROCESSORS", 2)  # they run one after the other
    with force_gpu_interpret_mode() if request.param == "gpu" else pltpu.force_tpu_interpret_mode():
        yield request.param


@pytest.fixture(params=["tpu", "xla"])
def fast(request):
    """A back end with a gradient of its own, which transformations could break; the GPU's is too slow to interpret."""
    with pltpu.force_tpu_interpret_mode():
        yield request.param


@pytest.fixture(params=CASES)
def case(request, rng):
    """(ids, number of groups, tile)"""
    ids = CASES[request.param](rng)
    return ids.astype(np.int32), OTHER_GROUPS.get(request.param, GROUPS), TILE if len(ids) == ROWS else None
