"""The TPU that is being compiled for, and how much of its VMEM a kernel may use."""

from jax.experimental.pallas import tpu as pltpu

SMALLEST_VMEM = 16 << 20  # of the chips these kernels run on: v4; also where the chip is unknown (interpret mode)


def chip() -> pltpu.TpuInfo | None:
    """The TPU being compiled for, None where the default device is none and no mesh says otherwise."""
    try:
        return pltpu.get_tpu_info()
    except ValueError:
        return None


def vmem_limit() -> int:
    """Bytes of VMEM a kernel may use: three quarters of the core's, the rest is the compiler's."""
    return (chip().vmem_capacity_bytes if chip() else SMALLEST_VMEM) * 3 // 4
