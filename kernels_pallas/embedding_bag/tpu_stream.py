"""Rows of a table in HBM, one copy a row and many of them in flight: what the kernels that read the table share.

A table row of [D / 128, 128] is contiguous, so one copy fetches it. Rows arrive in groups that are waited for at once,
in a ring of buffers that runs on from one grid step into the next: the memory never idles between steps.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.tpu_chip import chip

LANES, SUBLANES = 128, 8
SLACK = 4 << 20  # bytes of VMEM for the compiler
GROUP = 32  # rows waited for at once, whose copies and sums are written out
IN_FLIGHT = 256  # rows: of 4 KiB, 1 MiB, what HBM delivers within its latency
STEP = 2048  # entries (a token's rows, one after the other) of a grid step


@dataclasses.dataclass(frozen=True)
class Plan:
    """How T tokens of K rows are cut: `steps` of each core, `tokens` a step, `slots` a token (K rounded up)."""

    tokens: int
    slots: int
    group: int
    buffers: int
    cores: int
    steps: int

    @property
    def entries(self) -> int:
        return self.tokens * self.slots

    @property
    def ahead(self) -> int:
        """Entries that are fetched before they are needed."""
        return (self.buffers - 1) * self.group


def plan(tokens: int, slots: int) -> Plan:
    slots = -(-slots // 8) * 8
    group = math.gcd(slots, GROUP)
    most = 1 << (max(STEP // slots, 1).bit_length() - 1)
    step = min(most, 1 << (tokens - 1).bit_length())
    buffers = math.gcd(step * slots // group, IN_FLIGHT // group)
    cores = chip().num_cores if chip() else 1
    return Plan(step, slots, group, buffers, cores, -(-tokens // (step * cores)))


def blocks(entries: jax.Array, plan: Plan) -> jax.Array:
    """[T, K] -> [steps of all cores, 1, entries a step]; zeros where there is no token or slot."""
    tokens, slots = entries.shape
    every = plan.cores * plan.steps
    padded = jnp.pad(entries, ((0, every * plan.tokens - tokens), (0, plan.slots - slots)))
    return padded.reshape(every, 1, plan.entries)


def with_ahead(rows: jax.Array, plan: Plan) -> jax.Array:
    """Blocks of rows, each with the first of the next block's behind its own."""
    return jnp.concatenate([rows, jnp.roll(rows, -1, axis=0)[..., : plan.ahead]], axis=2)


def block_spec(plan: Plan, shape: tuple[int, ...], **options) -> pl.BlockSpec:
    """Blocks of this shape along the first axis, one a grid step."""
    return pl.BlockSpec(shape, lambda core, step: (core * plan.steps + step, *(0,) * (len(shape) - 1)), **options)


def needed(plan: Plan, table: jax.ShapeDtypeStruct) -> int:
    """Bytes of VMEM that reading a table [N, D] takes: the ring, a step's blocks twice: results or dy, and dots."""
    row = table.shape[1] * table.dtype.itemsize
    padded = row * max(1, SUBLANES * LANES // table.shape[1])
    return padded * (plan.buffers * plan.group + 2 * plan.tokens) + 8 * (plan.entries + LANES * plan.group) + SLACK


def scratch(plan: Plan, table: jax.Array) -> list:
    ring = pltpu.VMEM((plan.buffers, plan.group, *table.shape[1:]), table.dtype)
    return [ring, pltpu.SemaphoreType.DMA((plan.buffers,))]


def stream(plan: Plan, rows, table, ring, arrived, use: Callable, carry):
    """use(group's first entry, its token, its rows [group, D / 128, 128], carry) -> carry, over a step's groups."""
    groups, ahead = plan.entries // plan.group, plan.buffers - 1

    def fetch(group, _):
        buffer = lax.rem(group, plan.buffers)
        for i in range(plan.group):
            row = rows[0, 0, group * plan.group + i]
            pltpu.make_async_copy(table.at[row], ring.at[buffer, i], arrived.at[buffer]).start()

    def wait(buffer, _):
        # Only the size of what is waited for counts.
        pltpu.make_async_copy(ring.at[buffer], ring.at[buffer], arrived.at[buffer]).wait()

    @pl.when(pl.program_id(1) == 0)
    def _():
        lax.fori_loop(0, ahead, fetch, None)

    def body(group, carry):
        if not ahead:
            fetch(group, None)
        buffer = lax.rem(group, plan.buffers)
        wait(buffer, None)
        picked = ring[buffer]  # now: the compiler moves arithmetic past a copy's start, but no load
        if ahead:
            fetch(group + ahead, None)
        return use(group * plan.group, group * plan.group // plan.slots, picked, carry)

    carry = lax.fori_loop(0, groups, body, carry)

    @pl.when(pl.program_id(1) == plan.steps - 1)
    def _():
        lax.fori_loop(0, ahead, wait, None)  # the steps are whole rings, so what is still on its way is in the first

    return carry
