"""The GPU that is being compiled for."""

import re

import jax
from jax.extend import backend

HOPPER = re.compile(r"\bG?H\d+")  # H100, H200, GH200, for which alone the kernels have been compiled


def device():
    """The accelerator being compiled for, or the one here; None on a CPU, where the kernels are interpreted."""
    found = jax.sharding.get_abstract_mesh().abstract_device or backend.get_default_device()
    return None if found.platform == "cpu" else found


def not_hopper() -> str | None:
    """What the device is instead of a Hopper GPU, or None."""
    chip = device()
    return (
        f"the device is {chip.device_kind}, expected a Hopper GPU"
        if chip and not HOPPER.search(chip.device_kind)
        else None
    )
