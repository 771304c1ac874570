"""The public functions: they check shapes, pick a back end and name what a rematerialisation policy may save."""

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kernels_pallas.back_ends import check_implementation
from kernels_pallas.grouped_matmul import operations, reference
from kernels_pallas.grouped_matmul.layout import Layout

IMPLEMENTATIONS = ("xla", *operations.KERNELS, "reference")


def _run(name: str, implementation: str | None, layout: Layout, *arrays, transpose: bool | None = None):
    """The operation by the back end asked for; a ValueError says why each cannot take the call."""
    check_implementation(implementation, operations.KERNELS, layout, *arrays)
    options = () if transpose is None else (transpose,)
    if implementation == "reference":
        return getattr(reference, name)(*arrays, layout, *options)
    return getattr(operations, name)(*arrays, layout, *options, implementation)


def _check_rows(x, layout: Layout) -> None:
    if x.ndim != 2 or x.shape[0] != layout.num_slots:
        raise ValueError(f"x: got {x.dtype}{list(x.shape)}, expected [P={layout.num_slots}, K]")


def _check_stack(name: str, array, dtype, **axes: int | None) -> None:
    """Axes by name in order, with their sizes where they are given."""
    fits = array.ndim == 3 and all(size in (None, got) for size, got in zip(axes.values(), array.shape, strict=True))
    if not fits or array.dtype != dtype:
        expected = ", ".join(axis if size is None else f"{axis}={size}" for axis, size in axes.items())
        raise ValueError(f"{name}: got {array.dtype}{list(array.shape)}, expected {dtype}[{expected}]")


def grouped_matmul(
    x: Float[Array, "P K"],
    weights: Float[Array, "G a b"],
    layout: Layout,
    *,
    transpose_weights: bool = False,
    implementation: str | None = None,
) -> Float[Array, "P N"]:
    """Every slot times its group's matrix: y[p] = x[p] @ weights[group of p]. Accumulates in float32; x's dtype out.

    weights [G, K, N], or [G, N, K] with `transpose_weights`. Padding slots must be zero, as `group_rows` leaves them;
    then they are exact zeros in the result and in both gradients, as is the weight gradient of an empty group.
    Its result carries the checkpoint name "grouped_matmul". Raises ValueError naming the argument that does not fit.
    """
    _check_rows(x, layout)
    axes = {"N": None, "K": x.shape[1]} if transpose_weights else {"K": x.shape[1], "N": None}
    _check_stack("weights", weights, x.dtype, G=layout.num_groups, **axes)
    y = _run("matmul", implementation, layout, x, weights, transpose=transpose_weights)
    return checkpoint_name(y, "grouped_matmul")


def grouped_swiglu(
    x: Float[Array, "P K"],
    w_gate: Float[Array, "G K N"],
    w_up: Float[Array, "G K N"],
    layout: Layout,
    *,
    implementation: str | None = None,
) -> Float[Array, "P N"]:
    """silu(x @ w_gate) * (x @ w_up) with each slot's own group's weights; silu in float32 (Shazeer 2020, eq. 6).

    Padding and errors as `grouped_matmul`; the gate and up products carry its checkpoint name, the result does not.
    """
    _check_rows(x, layout)
    _check_stack("w_gate", w_gate, x.dtype, G=layout.num_groups, K=x.shape[1], N=None)
    _check_stack("w_up", w_up, x.dtype, G=layout.num_groups, K=x.shape[1], N=w_gate.shape[2])
    return _run("swiglu", implementation, layout, x, w_gate, w_up)


def grouped_feed_forward(
    x: Float[Array, "P K"],
    w_gate: Float[Array, "G K F"],
    w_up: Float[Array, "G K F"],
    w_down: Float[Array, "G F N"],
    layout: Layout,
    *,
    implementation: str | None = None,
) -> Float[Array, "P N"]:
    """(silu(x @ w_gate) * (x @ w_up)) @ w_down with each slot's own group's weights (Shazeer 2020, eq. 6).

    Padding and errors as `grouped_matmul`; the gate and up products and the result carry its checkpoint name.
    """
    _check_rows(x, layout)
    _check_stack("w_gate", w_gate, x.dtype, G=layout.num_groups, K=x.shape[1], F=None)
    _check_stack("w_up", w_up, x.dtype, G=layout.num_groups, K=x.shape[1], F=w_gate.shape[2])
    _check_stack("w_down", w_down, x.dtype, G=layout.num_groups, F=w_gate.shape[2], N=None)
    y = _run("feed_forward", implementation, layout, x, w_gate, w_up, w_down)
    return checkpoint_name(y, "grouped_matmul")
