"""Training a grouped product costs what it must: forward and backward are three forwards, however many groups."""

import math

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.grouped_matmul import align_rows, grouped_feed_forward, grouped_matmul, grouped_swiglu

K, N = 128, 384
FUNCTIONS = {
    "matmul": (grouped_matmul, [(K, N)]),
    "swiglu": (grouped_swiglu, [(K, N), (K, N)]),
    "feed-forward": (grouped_feed_forward, [(K, N), (K, N), (N, K)]),
}


def flops(jaxpr) -> int:
    """FLOPs of all products a live tile goes through: a loop's body counts once, a kernel's once for each block."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * eqn.outvars[0].aval.size
        # The last axis of a kernel's grid runs over tiles.
        times = math.prod(eqn.params["grid_mapping"].grid[:-1]) if eqn.primitive.name == "pallas_call" else 1
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * flops(inner)
    return total


@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("implementation", ["xla", "tpu"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_forward_and_backward_are_three_forwards(name, implementation, groups, monkeypatch):
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1))
    function, shapes = FUNCTIONS[name]
    layout = align_rows(jnp.arange(1024, dtype=jnp.int32) % groups, groups)
    x = jnp.zeros((layout.num_slots, K), jnp.bfloat16)
    weights = [jnp.zeros((groups, *shape), jnp.bfloat16) for shape in shapes]

    def forward(x, *weights):
        return function(x, *weights, layout, implementation=implementation)

    def both(x, *weights):
        y, pull = jax.vjp(forward, x, *weights)
        return pull(y)

    once = flops(jax.make_jaxpr(forward)(x, *weights).jaxpr)
    one_tile = 2 * layout.tile * sum(math.prod(shape) for shape in shapes)
    assert once == one_tile if implementation == "tpu" else once % one_tile == 0
    assert flops(jax.make_jaxpr(both)(x, *weights).jaxpr) <= 3.1 * once
