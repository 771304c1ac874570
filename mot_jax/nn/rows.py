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
    own = _own(rows.owner, value)
    return own.reshape(own.shape[0], *(1,) * (rank - 2), own.shape[1])


@jax.custom_vjp
def _own(owner: Float[Array, "P G"], value: Float[Array, "G D"]) -> Float[Array, "P D"]:
    """The owners' vectors, as a sum that the compiler fuses into what uses it; its gradient is one product."""
    return sum(owner[:, group, None] * vector for group, vector in enumerate(value))


def _own_forward(owner, value):
    return _own(owner, value), (owner, value)


def _own_backward(saved, dy):
    owner, value = saved
    return None, jnp.einsum("pg,pd->gd", owner, dy, precision=jax.lax.Precision.HIGHEST).astype(value.dtype)


_own.defvjp(_own_forward, _own_backward)
