"""What benchmarks/grouped_matmul.py times beside the products: making a layout, moving rows, norms by group."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from grouped_arms import Problem
from grouped_settings import Setting

from kernels_pallas.grouped_matmul import align_rows, group_rows, ungroup_rows
from mot_jax.nn.norm import unit
from mot_jax.nn.rows import enter, make_rows, scale_rows

MOST_GROUPS = 3  # norms are a modality's own; experts have none


def around(setting: Setting, problem: Problem) -> dict[str, Callable[[], object]]:
    """What a model pays once for all its layers: the layout, and one move of rows in and one out."""
    align = jax.jit(functools.partial(align_rows, num_groups=len(setting.shares)))
    layout = align(problem.ids)
    slots = jax.jit(group_rows)(problem.x, layout)
    move = jax.jit(lambda x, y, layout: (group_rows(x, layout), ungroup_rows(y, layout)))
    return {
        "align_rows": functools.partial(align, problem.ids),
        "moving rows": functools.partial(move, problem.x, slots, layout),
    }


def norms(setting: Setting, problem: Problem) -> dict[str, Callable[[], object]]:
    """RMSNorm and its gradients with one gain, and with one a group; nothing for more than a few groups."""
    groups = len(setting.shares)
    if not 1 < groups <= MOST_GROUPS:
        return {}

    @jax.jit
    def run(x, gain, rows, dy):
        def norm(x, gain):
            return scale_rows(rows, unit(x.astype(jnp.float32), 1e-6), gain).astype(x.dtype)

        y, pull = jax.vjp(norm, x, gain)
        return y, pull(dy)

    ids, rope = problem.ids[None], (jnp.zeros((1, setting.rows, 1)),) * 2
    found = {}
    for name, count in (("dense", None), ("grouped", groups)):
        rows = make_rows(ids, ids, jnp.ones_like(ids), rope, count)
        x, dx = (enter(rows, a[None]) for a in (problem.x, problem.dx))
        gain = jnp.ones((setting.depth,) if count is None else (groups, setting.depth))
        found[name] = functools.partial(run, x, gain, rows, dx)
    return found
