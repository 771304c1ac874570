"""Training a grouped product costs what it must: forward and backward are three forwards, however many groups.

Nothing is run but a program's integers: they say how often its loops turn, and so how many products it does.
"""

import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import Literal

from kernels_pallas.grouped_matmul import (
    align_rows,
    gpu,
    gpu_rows,
    gpu_stream,
    gpu_weights,
    grouped_feed_forward,
    grouped_matmul,
    grouped_swiglu,
)
from kernels_pallas.schedule import _inner

T, K, N = 1024, 128, 384
FUNCTIONS = {
    "matmul": (grouped_matmul, [(K, N)]),
    "swiglu": (grouped_swiglu, [(K, N), (K, N)]),
    "feed-forward": (grouped_feed_forward, [(K, N), (K, N), (N, K)]),
}


def flops_of(dot) -> int:
    ((contracted, _), _) = dot.params["dimension_numbers"]
    return 2 * math.prod(dot.invars[0].aval.shape[axis] for axis in contracted) * dot.outvars[0].aval.size


def in_kernel(jaxpr) -> int:
    """FLOPs that a kernel does with one live tile, which are those of a grid step."""
    total = 0
    for eqn in jaxpr.eqns:
        inner = sum(map(in_kernel, _inner(eqn)))
        assert not (inner and eqn.primitive.name == "while"), "a loop of products whose trips are not known"
        total += flops_of(eqn) if eqn.primitive.name == "dot_general" else eqn.params.get("length", 1) * inner
    return total


def run(jaxpr, consts, arguments, live_tiles: int) -> tuple[list, int]:
    """(results, FLOPs of the products done); None stands for every float, and for what is made of one."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    total = 0

    def inside(closed, arguments):
        nonlocal total
        outs, flops = run(closed.jaxpr, closed.consts, arguments, live_tiles)
        total += flops
        return outs

    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        inputs = [v.val if isinstance(v, Literal) else known[v] for v in eqn.invars]
        outs = [None] * len(eqn.outvars)
        if name == "while":
            split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
            of_test, of_body, outs = inputs[: split[0]], inputs[split[0] : split[1]], inputs[split[1] :]
            while inside(params["cond_jaxpr"], [*of_test, *outs])[0]:
                outs = inside(params["body_jaxpr"], [*of_body, *outs])
        elif name == "cond" and params.get("branches_platforms"):
            outs = inside(params["branches"][0], inputs[1:])  # the platform that is asked for
        elif name == "pallas_call":
            # The last axis of a kernel's grid runs over tiles.
            total += math.prod(params["grid_mapping"].grid[:-1]) * live_tiles * in_kernel(params["jaxpr"])
        elif name == "dot_general":
            total += flops_of(eqn)
        elif inner := list(called(eqn)):
            assert name not in ("cond", "scan"), f"{name}: not in these programs"
            outs = inside(inner[0], inputs)
        elif not any(jnp.issubdtype(v.aval.dtype, jnp.floating) for v in [*eqn.invars, *eqn.outvars]):
            found = eqn.primitive.bind(*inputs, **params)
            outs = found if eqn.primitive.multiple_results else [found]
        known.update(zip(eqn.outvars, outs, strict=True))
    return [v.val if isinstance(v, Literal) else known[v] for v in jaxpr.outvars], total


def called(eqn) -> Iterator:
    """The programs that the equation calls."""
    for value in eqn.params.values():
        if hasattr(value, "jaxpr") and hasattr(value, "consts"):
            yield value


def work(function, layout, *arrays) -> int:
    closed = jax.make_jaxpr(function)(*arrays)
    return run(closed.jaxpr, closed.consts, [None] * len(arrays), int(layout.live_tiles))[1]


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("implementation", ["xla", "tpu"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_and_backward_are_three_forwards(name, implementation, groups, monkeypatch):
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1))
    function, shapes = FUNCTIONS[name]
    layout = align_rows(jnp.arange(T, dtype=jnp.int32) % groups, groups)
    x = jnp.zeros((layout.num_slots, K), jnp.bfloat16)
    weights = [jnp.zeros((groups, *shape), jnp.bfloat16) for shape in shapes]

    def forward(x, *weights):
        return function(x, *weights, layout, implementation=implementation)

    def both(x, *weights):
        y, pull = jax.vjp(forward, x, *weights)
        return pull(y)

    once = work(forward, layout, x, *weights)
    assert once == 2 * int(layout.live_tiles) * layout.tile * sum(map(math.prod, shapes))
    assert work(both, layout, x, *weights) <= 3.1 * once


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_so_are_they_on_a_gpu(name, groups, monkeypatch):
    """Where every kernel says itself which steps it takes."""
    total = 0

    def count(job_of, num_jobs, *_, accumulator, accumulators, results, **__):
        def kernel(*inputs):
            nonlocal total
            steps = sum(int(job_of(jnp.int32(number), inputs).steps) for number in range(num_jobs))
            a_step = 2 * gpu_stream.PIECE * gpu_stream.WORKERS * accumulators * math.prod(accumulator)
            total += steps * a_step
            return tuple(jnp.zeros(out.shape, out.dtype) for out in results)

        return kernel

    for module in (gpu_rows, gpu_weights):
        monkeypatch.setattr(module, "stream", count)
    _, shapes = FUNCTIONS[name]
    layout = align_rows(jnp.arange(T, dtype=jnp.int32) % groups, groups, tile=64)
    x = jnp.zeros((layout.num_slots, K), jnp.bfloat16)
    weights = [jnp.zeros((groups, *shape), jnp.bfloat16) for shape in shapes]
    if name == "matmul":
        y = gpu.matmul(x, *weights, layout, transpose=False)
        once = total
        gpu.matmul_gradient(x, *weights, y, layout, transpose=False)
    else:
        forward, backward = {
            "swiglu": (gpu.swiglu, gpu.swiglu_gradient),
            "feed-forward": (gpu.feed_forward, gpu.feed_forward_gradient),
        }[name]
        y, *kept = forward(x, *weights, layout, keep=True)
        once = total
        backward(x, *weights, *kept, y, layout)
    assert once == 2 * T * sum(map(math.prod, shapes))
    assert total <= 3.1 * once
