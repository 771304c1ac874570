"""The arms of benchmarks/grouped_matmul.py: how each takes its rows, and each thing measured as a call."""

import dataclasses
import functools
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from grouped_settings import Setting

from kernels_pallas.grouped_matmul import (
    align_rows,
    gpu,
    group_rows,
    grouped_feed_forward,
    grouped_matmul,
)

Product = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Arm:
    """`product(x, w, *extra)` and `layer(x, gate, up, down, *extra)`; its order of rows, its form of weights."""

    product: Product
    layer: Product
    order: Callable
    weights: Callable = lambda w: w
    extra: tuple = ()


def layer_of(product: Product) -> Product:
    """A SwiGLU feed-forward of three such products."""

    def layer(x, gate, up, down, *extra):
        hidden = jax.nn.silu(product(x, gate, *extra).astype(jnp.float32)) * product(x, up, *extra)
        return product(hidden.astype(x.dtype), down, *extra)

    return layer


def peers() -> tuple[dict[str, Product], list[str]]:
    """Others' products that this machine has, as (x, w, sizes) -> y of rows in order, and a line on each it has not."""
    found, absent = {"lax.ragged_dot": jax.lax.ragged_dot}, []
    if jax.default_backend() == "tpu":
        from jax.experimental.pallas.ops.tpu.megablox import gmm

        for tiling in ((256, 512, 512), (512, 1024, 1024)):
            found[f"megablox, tiles {tiling}"] = functools.partial(
                gmm, preferred_element_type=jnp.bfloat16, tiling=tiling
            )
    else:
        absent.append("megablox: needs a TPU")
    if importlib.util.find_spec("tokamax"):
        try:
            import tokamax

            found["tokamax"] = lambda x, w, sizes: tokamax.ragged_dot(x, w, group_sizes=sizes)
        except Exception as error:  # it asks for versions of its own
            absent.append(f"tokamax: {first_line(error)}")
    else:
        absent.append("tokamax: not installed")
    return found, absent


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A setting's arrays: rows x and dx [T, K] and dy [T, N] as they come, weights [G, K, N], [G, K, N], [G, N, K]."""

    ids: jax.Array
    x: jax.Array
    dx: jax.Array
    dy: jax.Array
    gate: jax.Array
    up: jax.Array
    down: jax.Array


def draw(setting: Setting) -> Problem:
    groups, keys = len(setting.shares), iter(jax.random.split(jax.random.key(0), 6))

    def normal(*shape, of=1):
        return jax.jit(lambda key: jax.random.normal(key, shape, setting.dtype) / of**0.5)(next(keys))

    counts = np.diff(np.rint(np.cumsum((0, *setting.shares)) * setting.rows)).astype(int)
    ids = np.random.default_rng(0).permutation(np.repeat(np.arange(groups), counts)).astype(np.int32)
    x, dx, dy = (normal(setting.rows, size) for size in (setting.depth, setting.depth, setting.width))
    gate, up = (normal(groups, setting.depth, setting.width, of=setting.depth) for _ in range(2))
    return Problem(
        jnp.asarray(ids), x, dx, dy, gate, up, normal(groups, setting.width, setting.depth, of=setting.width)
    )


def arms(setting: Setting, problem: Problem, others: dict[str, Product]) -> dict[str, Arm]:
    """Ours and the dense product, by all groups' rows with one group's weights, then the others."""
    groups = len(setting.shares)
    layout = jax.jit(functools.partial(align_rows, num_groups=groups))(problem.ids)
    by_group = jnp.argsort(problem.ids, stable=True)
    sizes = jnp.bincount(problem.ids, length=groups).astype(jnp.int32)

    def ours(name):
        return Arm(
            functools.partial(grouped_matmul, implementation=name),
            functools.partial(grouped_feed_forward, implementation=name),
            lambda rows: group_rows(rows, layout),
            extra=(layout,),
        )

    found = {"dense": Arm(jnp.matmul, layer_of(jnp.matmul), lambda rows: rows, lambda w: w[0]), "grouped": ours(None)}
    if jax.default_backend() == "gpu" and not gpu.unsupported(layout, problem.x, problem.up, problem.down):
        found["grouped, gpu kernels"] = ours("gpu")  # they have to be asked for
    for name, product in others.items():
        found[name] = Arm(product, layer_of(product), lambda rows: rows[by_group], extra=(sizes,))
    return found


def call(what: str, arm: Arm, problem: Problem) -> Callable[[], object]:
    """One of MEASURED but the norm, compiled at its first call; no array is a constant of the program."""
    x, dx, dy = map(arm.order, (problem.x, problem.dx, problem.dy))
    gate, up, down = map(arm.weights, (problem.gate, problem.up, problem.down))

    def with_gradients(function):
        def run(arrays, extra, cotangent):
            y, pull = jax.vjp(lambda *arrays: function(*arrays, *extra), *arrays)
            return y, pull(cotangent)

        return run

    def weight_gradient(x, w, extra, dy):
        return jax.vjp(lambda w: arm.product(x, w, *extra), w)[1](dy)

    function, *arguments = {
        "forward": (arm.product, x, up, *arm.extra),
        "weight gradient": (weight_gradient, x, up, arm.extra, dy),
        "both gradients": (with_gradients(arm.product), (x, up), arm.extra, dy),
        "feed-forward": (with_gradients(arm.layer), (x, gate, up, down), arm.extra, dx),
    }[what]
    return functools.partial(jax.jit(function), *arguments)
