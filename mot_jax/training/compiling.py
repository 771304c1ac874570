"""What XLA is told beyond the program, by platform."""

import functools

import jax
from jax.sharding import Mesh

# YNNPACK makes products fast and sums slow: without its sums a MoT step on one core takes 0.8 of the time.
PRODUCTS = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
CPU = {"xla_cpu_experimental_ynn_fusion_type": PRODUCTS}


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """The `compiler_options` of `jax.jit` for what runs on this mesh; None where there is nothing to say.

    jax lets no program that has some be part of another one.
    """
    on_cpu = all(device.platform == "cpu" for device in mesh.devices.flat)
    return CPU if on_cpu and _known() else None


@functools.cache
def _known() -> bool:
    """Whether this jaxlib knows the option: an experimental one may be renamed."""
    try:
        jax.jit(lambda: 0, compiler_options=CPU).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
