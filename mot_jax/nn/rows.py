"""How one device's tokens lie in memory while they pass through the layers, and what is known of each.

Without untied projections or norms rows stay in sequence order. With them they are put into tile-aligned group order
once per microbatch and stay there; only queries, keys and values leave it, and attention's output re-enters.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from kernels_pallas.grouped_matmul import Layout, align_rows, group_rows, grouped_matmul, ungroup_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """T = B*S tokens as P rows. `layout` and `owner` (float32[P, G], one-hot) are None in sequence order.

    token_ids, group_ids, segment_ids  int32[B, S] in sequence order; the group is -1 and the segment 0 of padding
    rope                               cosines and sines, each float32[B, S, H / 2]
    """

    layout: Layout | None
    owner: Array | None
    token_ids: Array
    group_ids: Array
    segment_ids: Array
    rope: tuple[Array, Array]

    @property
    def real(self) -> Bool[Array, " P"]:
        """Which rows are some document's tokens."""
        if self.layout is None:
            return self.segment_ids.reshape(-1) > 0
        return self.layout.row_of_slot < self.layout.num_rows


def make_rows(
    token_ids: Int[Array, "B S"],
    group_ids: Int[Array, "B S"],
    segment_ids: Int[Array, "B S"],
    rope: tuple[Array, Array],
    num_groups: int | None,
) -> Rows:
    """Rows in group order, or with `num_groups` None in sequence order.

    Tokens of segment 0 belong to nobody; in group order they become zeros and cost nothing.
    """
    group_ids = jnp.where(segment_ids > 0, group_ids, -1)
    layout = owner = None
    if num_groups is not None:
        ids = group_ids.reshape(-1)
        layout = align_rows(ids, num_groups)
        owner = group_rows(jax.nn.one_hot(ids, num_groups, dtype=jnp.float32), layout)
    return Rows(layout, owner, token_ids, group_ids, segment_ids, rope)


def enter(rows: Rows, x: Shaped[Array, "B S ..."]) -> Shaped[Array, "P ..."]:
    """Sequence order -> rows."""
    flat = x.reshape(-1, *x.shape[2:])
    return flat if rows.layout is None else group_rows(flat, rows.layout)


def leave(rows: Rows, x: Shaped[Array, "P ..."]) -> Shaped[Array, "B S ..."]:
    """Rows -> sequence order."""
    flat = x if rows.layout is None else ungroup_rows(x, rows.layout)
    return flat.reshape(*rows.token_ids.shape, *flat.shape[1:])


def project(rows: Rows, x: Float[Array, "P I"], weights: Array) -> Float[Array, "P O"]:
    """x @ weights[I, O], or each row with its group's weights[G, I, O]."""
    return x @ weights if weights.ndim == 2 else grouped_matmul(x, weights, rows.layout)


def per_row(rows: Rows, value: Array, rank: int) -> Array:
    """A shared vector as it is, or each row's own of a [G, ...] stack, ready to broadcast against rank-`rank` rows."""
    if value.ndim == 1:
        return value
    return _broadcast(_own(rows.owner, value), rank)


def scale_rows(rows: Rows, y: Float[Array, "P ... D"], gain: Array) -> Float[Array, "P ... D"]:
    """y times a shared vector, or each row times its own of a [G, D] stack."""
    return y * gain if gain.ndim == 1 else _scaled(y, rows.owner, gain)


@jax.custom_vjp
def _scaled(y, owner, gain):
    return y * _broadcast(_own(owner, gain), y.ndim)


def _scaled_forward(y, owner, gain):
    return _scaled(y, owner, gain), (y, owner, gain)


def _scaled_backward(saved, dz):
    y, owner, gain = saved
    # One product over all rows, then the sum over what shares a row's vector: that is small by then.
    d_gain = _by_group(owner, (dz * y).reshape(y.shape[0], -1)).reshape(owner.shape[1], -1, gain.shape[1]).sum(1)
    return dz * _broadcast(_own(owner, gain), y.ndim), None, d_gain.astype(gain.dtype)


_scaled.defvjp(_scaled_forward, _scaled_backward)


@jax.custom_vjp
def _own(owner: Float[Array, "P G"], value: Float[Array, "G D"]) -> Float[Array, "P D"]:
    """The owners' vectors, as a sum that the compiler fuses into what uses it; its gradient is one product."""
    return sum(owner[:, group, None] * vector for group, vector in enumerate(value))


def _own_forward(owner, value):
    return _own(owner, value), (owner, value)


def _own_backward(saved, dy):
    owner, value = saved
    return None, _by_group(owner, dy).astype(value.dtype)


_own.defvjp(_own_forward, _own_backward)


def _by_group(owner: Float[Array, "P G"], y: Float[Array, "P N"]) -> Float[Array, "G N"]:
    """Sums over each group's rows."""
    return jnp.einsum("pg,pn->gn", owner, y, precision=jax.lax.Precision.HIGHEST)


def _broadcast(own: Float[Array, "P D"], rank: int) -> Float[Array, "P ... D"]:
    return own.reshape(own.shape[0], *(1,) * (rank - 2), own.shape[1])
