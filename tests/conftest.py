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


@pytest.fixture
def rng(request) -> np.random.Generator:
    """Random numbers of this test alone: seeded by its name (pytest shows the seed when the test fails)."""
    seed = zlib.crc32(request.node.nodeid.encode())
    print(f"rng seed {seed}")
    return np.random.default_rng(seed)
