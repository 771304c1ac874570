"""Eight fake devices, run-time checks of shapes and types, and a seeded generator for every test."""

import os
import zlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag in (  # before jax is imported; what runs for milliseconds is compiled the sooner for not being optimized
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
):
    if flag.split("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

import jaxtyping

jaxtyping.install_import_hook(["mot_jax", "kernels_pallas"], "beartype.beartype")

import numpy as np
import pytest

HALVED = (
    *("tests/generation/", "tests/nn/", "tests/kernels_pallas/test_embedding_bag.py"),
    *(f"tests/kernels_pallas/test_{name}.py" for name in ("grouped_matmul", "layout", "product_key")),
    *(f"tests/training/test_{name}.py" for name in ("checkpoint", "loop", "sharding", "step", "values")),
)


def pytest_addoption(parser):
    parser.addoption(
        "--half", type=int, choices=(0, 1), help="of what compiles longest only this half: two interpreters share it"
    )


def pytest_collection_modifyitems(config, items):
    """Halves by the names of tests; kernels for GPUs are the second half's, since only jax 0.11 interprets them."""
    half = config.getoption("--half")
    if half is None:
        return

    def kept(item) -> bool:
        if not item.nodeid.startswith(HALVED):
            return True
        return half == (1 if "gpu" in item.name else zlib.crc32(item.nodeid.encode()) % 2)

    left_out = [item for item in items if not kept(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if kept(item)]


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers of this test alone: seeded by its name (pytest shows the seed when the test fails)."""
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)
