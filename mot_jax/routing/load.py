"""How much work routing can give each of the devices that a layer's experts are split over."""

import fractions
import math
from collections.abc import Sequence

from mot_jax.config import Pool
from mot_jax.config.experts import AverageKey, ExpertChoice, TokenChoice, exact

SLACK = fractions.Fraction(5, 4)  # of an even share: how uneven tokens' own choices may be before another round


def room(pools: Sequence[Pool], held: int, tokens: int, *, limited: bool) -> tuple[int, int]:
    """(pairs of a token and an expert to send each device at a time, the most there can be for one), of these tokens.

    At a time an even share and a quarter go, or all where there cannot be more, as of experts that choose.

    Args:
      held: experts of the stack on each device.
      limited: whether capacities hold, as in training.
    """
    stored = sum(pool.kind.stored for pool in pools)
    # Of tokens that share their pools in any way the load is a mean of the pools' own, so one pool's is the largest.
    most = max(_pairs(pool, start, held, limited) for pool in pools for start in range(0, stored, held))
    every = max(_pairs(pool, 0, stored, limited) for pool in pools)
    even = math.ceil(SLACK * tokens * every * held / stored)
    return max(1, min(int(tokens * most), even)), int(tokens * most)


def _pairs(pool: Pool, start: int, held: int, limited: bool) -> fractions.Fraction:
    """The most experts among `held` of the stack that a token of the pool meets, on average over a block."""
    kind = pool.kind
    shared = getattr(kind, "shared", 0)
    end = pool.first + kind.stored
    routed = _overlap(start, held, pool.first, end - shared)
    always = _overlap(start, held, end - shared, end)
    if isinstance(kind, ExpertChoice):
        return routed * (kind.active / kind.experts if limited else fractions.Fraction(1))
    ways = fractions.Fraction(min(routed, kind.top_k if isinstance(kind, TokenChoice | AverageKey) else 1))
    if isinstance(kind, TokenChoice) and kind.capacity is not None and limited:
        ways = min(ways, exact(kind.capacity) * kind.top_k * routed / kind.experts)
    return ways + always


def _overlap(start: int, count: int, first: int, end: int) -> int:
    return max(0, min(start + count, end) - max(start, first))
