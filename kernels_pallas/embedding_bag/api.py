"""The public functions: they check shapes, say which back end cannot take a call, and what rows out of range mean."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from kernels_pallas.back_ends import check_implementation
from kernels_pallas.embedding_bag import operations, reference

IMPLEMENTATIONS = ("xla", *operations.KERNELS, "reference")
LANES = 128


class RowsGradient(NamedTuple):
    """The gradient of the rows that were read: `values[i]` is that of table row `rows[i]`, M = min(T K, N).

    rows: each row once, in order; N (out of range: a scatter with mode="drop" skips it) after the last of them.
    values: float32 sums; zero after the last row.
    """

    rows: Int32[Array, "M"]
    values: Float32[Array, "M D"]


def _check(rows, weights) -> None:
    if rows.ndim != 2 or rows.dtype != jnp.int32:
        raise ValueError(f"rows: got {rows.dtype}{list(rows.shape)}, expected int32[T, K]")
    if weights.shape != rows.shape or weights.dtype != jnp.float32:
        raise ValueError(f"weights: got {weights.dtype}{list(weights.shape)}, expected float32{list(rows.shape)}")


def embedding_bag(
    values: Float[Array, "N *row"],
    rows: Int32[Array, "T K"],
    weights: Float32[Array, "T K"],
    *,
    implementation: str | None = None,
) -> Float[Array, "T D"]:
    """Each token's weighted sum of rows: y[t] = sum_k weights[t, k] values[rows[t, k]] (arXiv 2412.09764, section 3.2).

    values [N, D], bfloat16 or float32, or [N, D / 128, 128], which on a TPU spares a copy of the table. Sums in
    float32; the result has values' dtype. A row may be named several times. Rows outside 0..N-1 contribute nothing,
    and their weights' gradient is zero. Gradients reach values and weights. Rows are not
    gathered into [T, K, D]: off the TPU at most 256 MiB of them are held at a time, 2 MiB on a CPU.
    Raises ValueError naming the argument that does not fit.
    """
    _check(rows, weights)
    if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[2] != LANES):
        raise ValueError(f"values: got {values.dtype}{list(values.shape)}, expected [N, D] or [N, D / 128, 128]")
    if values.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"values: got {values.dtype}, expected bfloat16 or float32")
    if implementation == "reference":
        return reference.bag(values, rows, weights)
    check_implementation(implementation, operations.KERNELS, operations.table_of(values), rows)
    there = (rows >= 0) & (rows < values.shape[0])
    # Outside the custom gradient: a weight that is masked here gets a gradient of zero.
    return operations.bag(values, jnp.clip(rows, 0, values.shape[0] - 1), jnp.where(there, weights, 0), implementation)


def embedding_bag_rows_gradient(
    dy: Float[Array, "T D"],
    rows: Int32[Array, "T K"],
    weights: Float32[Array, "T K"],
    *,
    num_rows: int,
    implementation: str | None = None,
) -> RowsGradient:
    """The gradient of `embedding_bag`'s values where dy is its result's, without the N - M rows nobody read.

    Time and memory follow T K, not N = num_rows. Several bags of one table: concatenate along T. Rows outside 0..N-1
    are left out; a row read with a weight of zero is among the result's.
    Raises ValueError naming the argument that does not fit.
    """
    _check(rows, weights)
    if dy.ndim != 2 or dy.shape[0] != rows.shape[0] or dy.dtype not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"dy: got {dy.dtype}{list(dy.shape)}, expected bfloat16 or float32 [T={rows.shape[0]}, D]")
    if num_rows < 1:
        raise ValueError(f"num_rows: got {num_rows}, expected at least 1")
    if implementation == "reference":
        return RowsGradient(*reference.rows_gradient(dy, rows, weights, num_rows))
    table = jax.ShapeDtypeStruct((num_rows, dy.shape[1]), dy.dtype)
    check_implementation(implementation, operations.KERNELS, table, rows)
    there = (rows >= 0) & (rows < num_rows)
    masked = jnp.where(there, rows, num_rows), jnp.where(there, weights, 0)
    return RowsGradient(*operations.rows_gradient(dy, *masked, num_rows, implementation))
