"""The XLA path of the grouped products: its runs, and its two ways to the weights' gradient."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.grouped_matmul import (
    align_rows,
    group_rows,
    grouped_feed_forward,
    grouped_matmul,
    ungroup_rows,
    xla_few_rows,
)
from kernels_pallas.grouped_matmul.xla_runs import _runs
from tests.kernels_pallas.grouped import (
    TOLERANCE,
    K,
    N,
    assert_close,
    compiled,
    draw,
    float64,
    reference,
    reference_gradients,
)


@pytest.mark.parametrize("group", [0, 1, 2, -1])
def test_one_row_of_large_matrices(rng, group):
    depth, ids = 512, np.array([group], np.int32)
    x, *weights = draw(rng, "float32", 1, depth), *(draw(rng, "float32", 3, depth, depth) for _ in range(3))
    plain, whole = jax.device_get(_one_row(ids, x, *weights))
    x64, *weights64 = float64(x, *weights)
    gate, up = reference(ids, x64, *weights64[:2])
    (down,) = reference(ids, (gate / (1 + np.exp(-gate)) * up), weights64[2])
    assert_close(plain, gate, "float32")
    assert_close(whole, down, "float32")


@jax.jit
def _one_row(ids, x, gate, up, down):
    layout = align_rows(ids, 3)
    slots = group_rows(x, layout)
    products = (
        grouped_matmul(slots, gate, layout, implementation="xla"),
        grouped_feed_forward(slots, gate, up, down, layout, implementation="xla"),
    )
    return [ungroup_rows(y, layout) for y in products]


@pytest.mark.parametrize("tile", [8, 64])
def test_runs_take_every_live_tile_of_its_group_once(rng, tile):
    @jax.jit
    def layout_and_runs(ids):
        layout = align_rows(ids, 3, tile=tile)
        return layout, [run[1:] for run in _runs(layout)], [jnp.zeros(run[0]) for run in _runs(layout)]

    for shares in ([0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.0, 0.0, 1.0]):
        layout, runs, lengths = layout_and_runs(rng.choice(3, 25 * tile, p=shares).astype(np.int32))
        owners = np.full(len(layout.tile_groups), -1)
        for (starts, groups, count), rows in zip(runs, map(len, lengths), strict=True):
            for start, group in zip(starts[:count], groups[:count], strict=True):
                assert np.all(owners[start // tile : (start + rows) // tile] == -1)
                owners[start // tile : (start + rows) // tile] = group
        live = int(layout.live_tiles)
        np.testing.assert_array_equal(owners[:live], layout.tile_groups[:live])
        assert np.all(owners[live:] == -1)


def test_no_product_is_done_for_runs_that_are_not_there():
    def product(ids, x, weights):
        return grouped_matmul(x, weights, align_rows(ids, 2, tile=64), implementation="xla")

    slots = jax.eval_shape(lambda ids: align_rows(ids, 2, tile=64), jnp.zeros(500, jnp.int32)).num_slots
    arguments = jnp.zeros(500, jnp.int32), jnp.zeros((slots, 64)), jnp.zeros((2, 64, 128))
    *loops, entry = jax.jit(product).lower(*arguments).compile().as_text().split("ENTRY")
    products = re.compile(r"ynn_fusion|\bdot\(|dot_general")
    assert products.search("".join(loops))
    assert not products.search(entry)


@functools.cache
def in_one_pass(groups, tile):
    """The same program, traced where no rows are few."""
    return compiled.__wrapped__("xla", groups, tile)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_weights_gradients_of_few_rows_and_of_many_agree(rng, case, dtype, monkeypatch):
    ids, groups, tile = case
    assert 2 * len(ids) < xla_few_rows.MOST
    shapes = (len(ids), K), (len(ids), N), *[(groups, K, N)] * 2, (groups, N, N)
    inputs = ids, *(draw(rng, dtype, *shape) for shape in shapes)
    masked = jax.device_get(compiled("xla", groups, tile)(*inputs))
    monkeypatch.setattr(xla_few_rows, "MOST", 0)
    looped = jax.device_get(in_one_pass(groups, tile)(*inputs))
    for (_, few, _), (_, many, _) in zip(masked, looped, strict=True):
        for a, b in zip(few, many, strict=True):
            assert_close(a, np.asarray(b, np.float64), dtype)


def test_few_rows_that_belong_to_several_groups(rng):
    ids, x, w = np.array([[0, 2], [2, 1], [-1, 1]], np.int32), draw(rng, "float32", 3, K), draw(rng, "float32", 3, K, N)
    dy = draw(rng, "float32", 3, N)

    def product(w):
        layout = align_rows(jnp.asarray(ids), 3)
        return ungroup_rows(grouped_matmul(group_rows(jnp.asarray(x), layout), w, layout, implementation="xla"), layout)

    (got,) = jax.vjp(product, jnp.asarray(w))[1](jnp.asarray(dy))
    (x64, dy64, w64) = float64(x, dy, w)
    expected = sum(reference_gradients(column, x64, dy64, w64)[1] for column in ids.T)
    assert_close(got, expected, "float32")
