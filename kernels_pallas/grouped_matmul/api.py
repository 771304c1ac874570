"""The public functions: they check shapes, pick a back end and name what a rematerialisation policy may save."""

import types

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from kernels_pallas.grouped_matmul import reference, xla
from kernels_pallas.grouped_matmul.layout import Layout

IMPLEMENTATIONS = {"xla": xla, "reference": reference}


def _backend(implementation: str | None) -> types.ModuleType:
    name = "xla" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation: got {name!r}, expected one of {', '.join(sorted(IMPLEMENTATIONS))}")
    return IMPLEMENTATIONS[name]


def _check(x, layout: Layout, contracted: int, **weights) -> None:
    if x.ndim != 2 or x.shape[0] != layout.num_slots:
        raise ValueError(f"x: got {x.dtype}{list(x.shape)}, expected [P={layout.num_slots}, K]")
    axes = [f"G={layout.num_groups}", "N", "N"]
    axes[contracted] = f"K={x.shape[1]}"
    first = next(iter(weights.values()))
    for name, array in weights.items():
        fits = array.ndim == 3 and (array.shape[0], array.shape[contracted]) == (layout.num_groups, x.shape[1])
        if not fits or array.shape != first.shape or array.dtype != x.dtype:
            expected = f"{x.dtype}[{', '.join(axes)}]"
            raise ValueError(f"{name}: got {array.dtype}{list(array.shape)}, expected {expected}")
        axes = [*axes[:2], f"N={first.shape[2]}"] if contracted == 1 else axes


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
    _check(x, layout, 2 if transpose_weights else 1, weights=weights)
    y = _backend(implementation).matmul(x, weights, layout, transpose_weights)
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
    _check(x, layout, 1, w_gate=w_gate, w_up=w_up)
    return _backend(implementation).swiglu(x, w_gate, w_up, layout)
