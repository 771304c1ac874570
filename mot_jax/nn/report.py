"""What a layer tells about its routing besides its output."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

Metrics = dict[str, tuple[Any, Any]]  # name -> (sum, count), float32; Any: a tree map may put shapes in their place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Report:
    """Sums over this device's tokens. `balance` over blocks of rows, `auxiliary` (a cross-entropy) over tokens.

    reads: of a memory layer, the values' numbers int32[P, K] (past the last for no token's) and their weights, float32.
    """

    balance: Any
    auxiliary: Any
    metrics: Metrics
    reads: tuple[Any, Any] | None = None


def nothing() -> Report:
    zero = jnp.zeros((), jnp.float32)
    return Report(zero, zero, {})


def merge(*reports: Report) -> Report:
    """The sums of several reports of one layer, whose metrics have different names."""
    return Report(
        balance=sum(report.balance for report in reports),
        auxiliary=sum(report.auxiliary for report in reports),
        metrics={name: value for report in reports for name, value in report.metrics.items()},
        reads=next((report.reads for report in reports if report.reads is not None), None),
    )
