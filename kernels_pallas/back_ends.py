"""Which back end runs an operation: the one asked for, or the one for the platform being compiled for.

A back end of kernels is a module with the operations and `unsupported(*call)`: why it cannot take a call, or None.
"""

import functools
from collections.abc import Callable, Mapping
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import pallas as pl
from jax.extend.core import Primitive
from jax.interpreters import mlir

PLATFORMS = {"gpu": "cuda", "sparse_core": "tpu", "tpu": "tpu"}  # that each back end's kernels are for


def check_implementation(implementation: str | None, kernels: Mapping[str, ModuleType], *call) -> None:
    """Raises ValueError for an unknown name, or with every back end's reason where the one asked for cannot."""
    known = ("xla", *kernels, "reference")
    if implementation is not None and implementation not in known:
        raise ValueError(f"implementation: got {implementation!r}, expected one of {', '.join(sorted(known))}")
    if implementation in kernels and kernels[implementation].unsupported(*call):
        raise ValueError(_refusal(implementation, kernels, call))


def _refusal(implementation: str, kernels: Mapping[str, ModuleType], call: tuple, platform: str | None = None) -> str:
    """Every back end's reason, on the platform if it is known."""

    def reason(name: str) -> str:
        if found := kernels[name].unsupported(*call):
            return found
        needs = PLATFORMS[name]
        return f"can on {needs}" if platform in (None, needs) else f"compiled for {platform}, expected {needs}"

    every = "; ".join(f"{name}: {reason(name)}" for name in kernels)
    return f"implementation: {implementation!r} cannot take this call ({every}; xla: can)"


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

    Compiled for another platform than that of the kernels asked for, it raises ValueError with every back end's reason.

    Args:
      modules: every back end by name, "xla" among them; `default`: kernels by platform.
      call: what `unsupported` is asked about.
    """

    def of(module):
        function = functools.partial(getattr(module, name), **static)
        # A batch of calls is a loop of them: the kernels' own batching would leave their grid's semantics behind.
        return sequential_vmap(function) if hasattr(module, "unsupported") else function

    # Never by jax.devices(): the program may be compiled for a machine that is not there.
    if implementation is None:
        able = {platform: of(module) for platform, module in default.items() if not module.unsupported(*call)}
        return lax.platform_dependent(*arguments, default=of(modules["xla"]), **able)
    asked = of(modules[implementation])
    if implementation not in PLATFORMS or _interpreted():
        return asked(*arguments)
    kernels = {name: module for name, module in modules.items() if name in PLATFORMS}
    refused = _refused(asked, lambda platform: _refusal(implementation, kernels, call, platform))
    return lax.platform_dependent(*arguments, default=refused, **{PLATFORMS[implementation]: asked})


def _interpreted() -> bool:
    """Whether kernels are interpreted here, as they can be on every platform."""
    # jax has no public way to ask.
    probe = jax.make_jaxpr(pl.pallas_call(lambda out: None, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32)))()
    return any(eqn.params.get("interpret") for eqn in probe.eqns)


def _refused(function: Callable, message_of: Callable[[str], str]) -> Callable:
    """The function for platforms that cannot run it: it can be traced, and raises ValueError when it is lowered."""

    def never(*arguments):
        def bind(shape):
            return _never.bind(jnp.zeros(shape.shape, shape.dtype), message_of=message_of)

        return jax.tree.map(bind, jax.eval_shape(function, *arguments))

    return jax.jit(never)


def _raise(context, _, *, message_of):
    raise ValueError(message_of("/".join(context.module_context.platforms)))


_never = Primitive("implementation_refused")
_never.def_abstract_eval(lambda shape, **_: shape)
mlir.register_lowering(_never, _raise)
