"""Properties of the tile-aligned layout, of moving rows in and out of it, and of per-group scales."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.grouped_matmul import (
    align_rows,
    group_of_slot,
    group_pairs,
    group_rows,
    ungroup_rows,
)
from kernels_pallas.grouped_matmul.tiles import choose_tile, num_tiles

aligned = jax.jit(
    align_rows, static_argnums=1, static_argnames=("tile", "max_pairs")
)  # one compile for many small operations


def random_layout(rng, rows=103, groups=4, tile=8):
    ids = rng.integers(-2, groups + 2, rows)
    return ids, aligned(jnp.asarray(ids, jnp.int32), groups, tile=tile)


@pytest.mark.parametrize("tile", [1, 3, 8, 64, None])
def test_every_owned_row_has_one_slot_in_a_tile_of_its_group(rng, tile):
    ids, layout = random_layout(rng, tile=tile)
    owned = (ids >= 0) & (ids < 4)
    slots = np.asarray(layout.slot_of_pair)[:, 0]
    assert np.all(slots[~owned] == layout.num_slots)
    assert len(set(slots[owned])) == owned.sum()
    np.testing.assert_array_equal(np.asarray(layout.row_of_slot)[slots[owned]], np.flatnonzero(owned))
    assert np.sum(np.asarray(layout.row_of_slot) < len(ids)) == owned.sum()
    np.testing.assert_array_equal(np.asarray(layout.tile_groups)[slots[owned] // layout.tile], ids[owned])
    np.testing.assert_array_equal(group_of_slot(layout)[slots[owned]], ids[owned])
    np.testing.assert_array_equal(layout.group_sizes, np.bincount(ids[owned], minlength=4))
    assert layout.live_tiles == sum(-(-np.sum(ids == g) // layout.tile) for g in range(4))
    assert np.all(slots[owned] < layout.live_tiles * layout.tile)


def test_rows_keep_their_order_within_a_group(rng):
    ids, layout = random_layout(rng)
    for group in range(4):
        slots = np.asarray(layout.slot_of_pair)[:, 0][ids == group]
        np.testing.assert_array_equal(np.diff(slots), 1)


def test_the_bound_on_tiles_is_reached_and_never_passed(rng):
    for _ in range(200):
        rows, groups, tile = rng.integers(1, [60, 9, 20]).tolist()
        sizes = np.bincount(rng.integers(0, groups, rows), minlength=groups)
        assert np.sum(-(-sizes // tile)) <= num_tiles(rows, groups, tile)
    assert num_tiles(9, 3, 4) == 4  # 1 + 1 + 7 rows fill 1 + 1 + 2 tiles
    assert num_tiles(2, 5, 8) == 2


def test_a_few_decoding_rows_take_few_slots():
    for rows in (1, 4, 16, 64):
        tile = choose_tile(rows, 3)
        assert tile <= 8
        assert num_tiles(rows, 3, tile) * tile <= rows + 3 * 8


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "bool"])
def test_rows_come_back_and_padding_is_zero(rng, shape, dtype):
    ids, layout = random_layout(rng)
    x = jnp.asarray(rng.integers(1, 9, (len(ids), *shape)), dtype)
    owned = (ids >= 0) & (ids < 4)
    grouped = group_rows(x, layout)
    back = ungroup_rows(grouped, layout)
    assert grouped.dtype == back.dtype == x.dtype
    np.testing.assert_array_equal(back[owned], x[owned])
    assert not np.any(np.asarray(back[~owned]))
    assert not np.any(np.asarray(grouped)[np.asarray(layout.row_of_slot) == len(ids)])


def test_the_gradient_of_moving_rows_is_the_transpose_and_no_scatter(rng):
    ids, layout = random_layout(rng)
    x = jnp.asarray(rng.normal(size=(len(ids), 5)), jnp.float32)
    y = jnp.asarray(rng.normal(size=(layout.num_slots, 5)), jnp.float32)
    there, back = jax.vjp(lambda x: group_rows(x, layout), x)
    out, forth = jax.vjp(lambda y: ungroup_rows(y, layout), y)
    # <A x, y> = <x, A^T y> for both, each against the other operation.
    np.testing.assert_array_equal(back(y)[0], out)
    np.testing.assert_array_equal(forth(x)[0], there)
    np.testing.assert_allclose(jnp.vdot(there, y), jnp.vdot(x, out), rtol=1e-4, atol=1e-4)
    for function, argument in ((group_rows, x), (ungroup_rows, y)):
        jaxpr = jax.make_jaxpr(jax.grad(lambda a, f=function: jnp.sum(f(a, layout) ** 2)))(argument)
        assert "scatter" not in str(jaxpr)


def test_a_row_of_several_groups_is_copied_to_each_and_their_results_added(rng):
    rows, groups, ways = 61, 5, 3
    ids = np.stack([rng.permutation(groups)[:ways] for _ in range(rows)]).astype(np.int32)
    ids[rng.random(ids.shape) < 0.4] = -1
    layout = aligned(jnp.asarray(ids), groups, tile=8, max_pairs=int((ids >= 0).sum()))
    assert layout.num_slots < aligned(jnp.asarray(ids), groups, tile=8).num_slots
    x = jnp.asarray(rng.normal(size=(rows, 4)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=ids.shape), jnp.float32)
    scale = jnp.arange(1.0, groups + 1)
    scale_of_slot = scale[group_of_slot(layout)]

    def mix(x, weights):
        y = group_rows(x, layout) * scale_of_slot[:, None]
        return ungroup_rows(y * group_pairs(weights, layout)[:, None], layout)

    def plain(x, weights):
        factor = jnp.where(ids >= 0, weights * scale[ids], 0)
        return x * factor.sum(1, keepdims=True)

    np.testing.assert_allclose(mix(x, weights), plain(x, weights), rtol=1e-5, atol=1e-5)
    dy = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    for a, b in zip(jax.vjp(mix, x, weights)[1](dy), jax.vjp(plain, x, weights)[1](dy), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert "scatter" not in str(jax.make_jaxpr(jax.grad(lambda x: mix(x, weights).sum()))(x))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32"])
def test_ids_of_every_type_mean_the_same(rng, dtype):
    limits = np.iinfo(dtype)
    ids = np.concatenate([rng.integers(limits.min, limits.max, 150, endpoint=True), np.arange(50)]).astype(dtype)
    groups = 300  # more than eight bits can number
    there = np.where(ids < groups, ids.astype(np.int64), -1).astype(np.int32)
    got, expected = (aligned(jnp.asarray(a), groups, tile=8) for a in (ids, there))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_pairs_past_the_most_are_left_out(rng):
    ids = rng.permutation(np.repeat([0, 1, 2], [20, 20, 10])).astype(np.int32)
    kept = np.where(ids == 2, -1, ids)
    kept[np.flatnonzero(ids == 1)[16:]] = -1  # of five tiles the first group takes three
    got, expected = (aligned(jnp.asarray(a), 3, tile=8, max_pairs=25) for a in (ids, kept))
    assert got.num_slots == 40
    for name in ("pair_of_slot", "tile_groups", "live_tiles", "group_sizes"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(np.minimum(got.slot_of_pair, 40), expected.slot_of_pair)


@pytest.mark.parametrize(("rows", "ways", "max_pairs"), [(5, 0, None), (5, 2, 0), (1, 1, 0), (0, 2, None)])
def test_without_slots_rows_come_back_as_zeros(rows, ways, max_pairs):
    layout = aligned(jnp.zeros((rows, ways), jnp.int32), 3, max_pairs=max_pairs)
    back, pull = jax.vjp(lambda x: ungroup_rows(group_rows(x, layout), layout), jnp.ones((rows, 2)))
    for zeros in (back, *pull(back)):
        np.testing.assert_array_equal(zeros, jnp.zeros((rows, 2)))


@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16"])
def test_rows_of_two_groups_keep_their_type(dtype):
    layout = aligned(jnp.array([[0, 1], [2, -1], [-1, -1]], jnp.int32), 3, tile=8)
    back = ungroup_rows(group_rows(jnp.ones((3, 2), dtype), layout), layout)
    assert back.dtype == jnp.dtype(dtype)
    expected = [[True] * 2, [True] * 2, [False] * 2] if dtype == "bool" else [[2, 2], [1, 1], [0, 0]]
    np.testing.assert_array_equal(back, np.array(expected, back.dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layout: group_rows(jnp.zeros((11, 2)), layout), r"x: got float32\[11, 2\], expected \[T=10, \.\.\.\]"),
        (
            lambda layout: ungroup_rows(jnp.zeros((10, 2)), layout),
            r"y: got float32\[10, 2\], expected \[P=24, \.\.\.\]",
        ),
        (lambda _: align_rows(jnp.zeros(3, jnp.int32), 0), r"num_groups: got 0, expected at least 1"),
        (lambda _: align_rows(jnp.zeros(3, jnp.int32), 2, tile=0), r"tile: got 0, expected at least 1 row"),
    ],
)
def test_a_misfit_is_named_in_one_line(call, message):
    layout = aligned(jnp.zeros(10, jnp.int32), 3, tile=8)
    with pytest.raises(ValueError, match=message) as caught:
        call(layout)
    assert "\n" not in str(caught.value)
