"""Which back end runs an operation: the one asked for, or the one for the platform being compiled for.

A back end of kernels is a module with the operations and `unsupported(*call)`: why it cannot take a call, or None.
"""

import functools
from collections.abc import Mapping
from types import ModuleType

from jax import lax
from jax.custom_batching import sequential_vmap


def check_implementation(implementation: str | None, kernels: Mapping[str, ModuleType], *call) -> None:
    """Raises ValueError for an unknown name, or with every back end's reason where the one asked for cannot."""
    known = ("xla", *kernels, "reference")
    if implementation is not None and implementation not in known:
        raise ValueError(f"implementation: got {implementation!r}, expected one of {', '.join(sorted(known))}")
    reasons = {name: module.unsupported(*call) for name, module in kernels.items()}
    if reasons.get(implementation):
        every = "; ".join(f"{name}: {reason or 'can'}" for name, reason in ({**reasons, "xla": None}).items())
        raise ValueError(f"implementation: {implementation!r} cannot take this call ({every})")


def run(
    name: str,
    implementation: str | None,
    modules: Mapping[str, ModuleType],
    default: Mapping[str, ModuleType],
    call: tuple,
    *arguments,
    **static,
):
    """`name(*arguments, **static)` of the back end asked for; with None, of the platform's own where it takes the call.

    Args:
      modules: every back end by name, "xla" among them; `default`: kernels by platform.
      call: what `unsupported` is asked about.
    """

    def of(module):
        function = functools.partial(getattr(module, name), **static)
        # A batch of calls is a loop of them: the kernels' own batching would leave their grid's semantics behind.
        return sequential_vmap(function) if hasattr(module, "unsupported") else function

    if implementation is not None:
        return of(modules[implementation])(*arguments)
    able = {platform: of(module) for platform, module in default.items() if not module.unsupported(*call)}
    # Never by jax.devices(): the program may be compiled for a machine that is not there.
    return lax.platform_dependent(*arguments, default=of(modules["xla"]), **able)
