"""The numerics contract of embedding_bag: every back end against a float64 numpy loop over entries, on fresh inputs."""

import contextlib
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import force_gpu_interpret_mode
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.embedding_bag import (
    embedding_bag,
    embedding_bag_rows_gradient,
    gpu_bags,
    tpu_order,
    tpu_stream,
    tpu_table,
)
from kernels_pallas.embedding_bag.api import IMPLEMENTATIONS

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
TOKENS, SLOTS, ROWS, WIDTH = 5, 5, 24, 128  # shared by most cases, so that they share their compiled programs


@pytest.fixture
def racing(capfd):
    """TPU kernels are interpreted, and none of their copies may race with anything."""
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
        yield
    assert "RACE" not in capfd.readouterr().out


def interpreted(request):
    """The back end of the parameter; one interpreter at a time, because the GPU's takes the TPU's kernels too."""
    if request.param != "gpu":
        request.getfixturevalue("racing")
    with force_gpu_interpret_mode() if request.param == "gpu" else contextlib.nullcontext():
        yield request.param


# jax has no interpreter for SparseCores.
implementation = pytest.fixture(interpreted, params=sorted({*IMPLEMENTATIONS} - {"sparse_core"}), name="implementation")
# Back ends with a gradient of their own, which transformations could break; the GPU's is too slow to interpret.
fast = pytest.fixture(interpreted, params=["tpu", "xla"], name="fast")


def shuffled_pairs(rng, shape):
    tokens, slots = shape
    return rng.permuted(np.repeat(rng.integers(0, ROWS, (tokens, -(-slots // 2))), 2, axis=1)[:, :slots], axis=1)


# How rows are drawn; weights are normal unless the name is in ZERO.
CASES = {
    "any rows": lambda rng, shape: rng.integers(0, ROWS, shape),
    "rows named twice by a token": shuffled_pairs,
    "all on one row": lambda rng, shape: np.full(shape, rng.integers(ROWS)),
    "rows out of range": lambda rng, shape: rng.choice([-(2**31), -1, 0, ROWS - 1, ROWS, 2**31 - 1], shape),
    "no row in range": lambda rng, shape: np.full(shape, ROWS),
    "weights of zero": lambda rng, shape: rng.integers(0, ROWS, shape),
    "one token": lambda rng, shape: rng.integers(0, ROWS, (1, 3)),
    "nine rows a token": lambda rng, shape: rng.integers(0, ROWS, (3, 9)),
}


@pytest.fixture(params=CASES)
def case(request, rng):
    """(rows, weights)"""
    rows = CASES[request.param](rng, (TOKENS, SLOTS)).astype(np.int32)
    weights = draw(rng, "float32", *rows.shape)
    return rows, weights * (rng.random(rows.shape) < 0.5) if "zero" in request.param else weights


def draw(rng, dtype, *shape):
    return np.asarray(rng.normal(size=shape), jnp.dtype(dtype))


def expected(values, rows, weights, dy):
    """y, d values, d weights in float64, entry by entry."""
    values, weights, dy = (np.asarray(a, np.float64) for a in (values, weights, dy))
    y, d_values, d_weights = np.zeros_like(dy), np.zeros_like(values), np.zeros_like(weights)
    for (token, slot), row in np.ndenumerate(rows):
        if 0 <= row < len(values):
            y[token] += weights[token, slot] * values[row]
            d_values[row] += weights[token, slot] * dy[token]
            d_weights[token, slot] = values[row] @ dy[token]
    return y, d_values, d_weights


def assert_close(got, expected, dtype, tolerance=None):
    assert got.dtype == jnp.dtype(dtype)
    assert got.shape == expected.shape
    error = np.linalg.norm(np.asarray(got, np.float64) - expected)
    assert error <= (tolerance or TOLERANCE[dtype]) * np.linalg.norm(expected)


def every(implementation, values, rows, weights, dy):
    """y, d values, d weights, and the gradient of the rows that were read."""
    bag = functools.partial(embedding_bag, implementation=implementation)
    y, pull = jax.vjp(lambda values, weights: bag(values, rows, weights), values, weights)
    touched = embedding_bag_rows_gradient(dy, rows, weights, num_rows=values.shape[0], implementation=implementation)
    return y, *pull(dy), touched


compiled = functools.cache(lambda implementation: jax.jit(functools.partial(every, implementation)))


def check(got, values, rows, weights, dy):
    dtype = values.dtype.name
    y, d_values, d_weights, touched = jax.device_get(got)
    want_y, want_values, want_weights = expected(values, rows, weights, dy)
    assert_close(y, want_y, dtype)
    assert_close(d_values, want_values, dtype)
    assert_close(d_weights, want_weights, "float32", TOLERANCE[dtype])
    read = np.unique(rows[(rows >= 0) & (rows < len(values))])
    assert not np.any(d_values[np.setdiff1d(np.arange(len(values)), read)])
    assert len(touched.rows) == min(rows.size, len(values))
    np.testing.assert_array_equal(touched.rows[: len(read)], read)
    assert np.all(touched.rows[len(read) :] == len(values))
    assert_close(touched.values[: len(read)], want_values[read], "float32")
    assert not np.any(touched.values[len(read) :])


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_values_and_gradients(rng, case, implementation, dtype):
    rows, weights = case
    values, dy = draw(rng, dtype, ROWS, WIDTH), draw(rng, dtype, len(rows), WIDTH)
    check(compiled(implementation)(values, rows, weights, dy), values, rows, weights, dy)


@pytest.mark.parametrize(("cores", "room"), [(1, None), (2, None), (1, 4000)])
def test_tpu_blocks_smaller_than_the_problem(rng, monkeypatch, racing, cores, room):
    """Several grid steps of several rings, cores, tiles, chunks of entries; tokens that VMEM cannot hold at once."""
    monkeypatch.setattr(tpu_stream, "GROUP", 8)
    monkeypatch.setattr(tpu_stream, "IN_FLIGHT", 16)
    monkeypatch.setattr(tpu_stream, "STEP", 32)
    monkeypatch.setattr(tpu_stream, "chip", lambda: types.SimpleNamespace(num_cores=cores))
    monkeypatch.setattr(tpu_table, "TILE_BYTES", 8 * 4 * WIDTH)
    for module in (tpu_order, tpu_table):
        monkeypatch.setattr(module, "CHUNK", 16)
    if room:  # beside the sums, for less than 9 tokens
        fixed = tpu_table.needed(0, 1, 44, 4)
        monkeypatch.setattr(tpu_table, "vmem_limit", lambda: fixed + room)
    rows, weights = rng.integers(-1, 50, (9, 12)).astype(np.int32), draw(rng, "float32", 9, 12)
    values, dy = draw(rng, "float32", 44, WIDTH), draw(rng, "float32", 9, WIDTH)
    got = jax.jit(functools.partial(every, "tpu"))(values, rows, weights, dy)
    check(got, values, rows, weights, dy)


def test_gpu_rows_of_several_blocks_and_groups(rng, monkeypatch):
    monkeypatch.setattr(gpu_bags, "COLUMNS", 128)
    monkeypatch.setattr(gpu_bags, "IN_FLIGHT", 2)
    rows, weights = rng.integers(-1, 5, (3, 3)).astype(np.int32), draw(rng, "float32", 3, 3)
    values, dy = draw(rng, "float32", 4, 384), draw(rng, "float32", 3, 384)
    with force_gpu_interpret_mode():
        got = jax.jit(functools.partial(every, "gpu"))(values, rows, weights, dy)
    check(got, values, rows, weights, dy)


def test_a_walk_leaves_no_tile_before_it_is_done_and_takes_every_entry_once(rng):
    tile, tiles = 8, 6
    for size, high in ((5000, 48), (5000, 20), (3, 48), (1024, 48), (4096, 1)):
        rows = rng.integers(0, high, (size, 1)).astype(np.int32)
        entries = tpu_order.in_order(rows, np.ones((size, 1), np.float32))
        walk = jax.device_get(tpu_order.visits(entries, tiles, tile))
        assert np.all(np.diff(walk.tiles) >= 0)  # a tile's visits are consecutive: it is written once
        np.testing.assert_array_equal(np.unique(walk.tiles), np.arange(tiles))
        taken = np.zeros(entries.rows.size, int)
        for visit in range(int(walk.count[0])):
            own, start = walk.tiles[visit], walk.chunks[visit] * tpu_order.CHUNK
            first, end = np.clip(walk.offsets[own : own + 2], start, start + tpu_order.CHUNK)
            assert np.all(entries.rows.reshape(-1)[first:end] // tile == own)
            taken[first:end] += 1
        np.testing.assert_array_equal(taken, np.arange(taken.size) < size)


def test_a_tiled_table_is_the_same_table(rng, fast):
    values, dy = draw(rng, "float32", ROWS, 256), draw(rng, "float32", TOKENS, 256)
    rows, weights = rng.integers(0, ROWS, (TOKENS, 3)).astype(np.int32), draw(rng, "float32", TOKENS, 3)
    flat = compiled(fast)(values, rows, weights, dy)
    tiled = compiled(fast)(values.reshape(ROWS, 2, 128), rows, weights, dy)
    assert tiled[1].shape == (ROWS, 2, 128)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b), tiled, flat)


def test_sums_of_bfloat16_are_float32(implementation):
    # 256 + 16 / 8: each small term is lost in a sum of bfloat16's eight bits.
    values = jnp.asarray([[256.0], [1 / 8]], jnp.bfloat16) * jnp.ones((1, WIDTH), jnp.bfloat16)
    rows = jnp.ones((1, 17), jnp.int32).at[0, 0].set(0)
    y = embedding_bag(values, rows, jnp.ones((1, 17)), implementation=implementation)
    assert np.all(np.asarray(y, np.float32) == 258)
    dy = jnp.full((17, WIDTH), 1 / 8, jnp.bfloat16).at[0].set(256)
    bag = functools.partial(embedding_bag, implementation=implementation)
    (d_values,) = jax.vjp(lambda v: bag(v, jnp.ones((17, 1), jnp.int32), jnp.ones((17, 1))), values)[1](dy)
    assert np.all(np.asarray(d_values[1], np.float32) == 258)


def problem(rng, implementation):
    """A loss of (values, weights, rows), small enough to be transformed in every way."""
    values, weights = draw(rng, "float32", ROWS, WIDTH), draw(rng, "float32", TOKENS, 3)
    rows = rng.integers(-1, ROWS + 1, (TOKENS, 3)).astype(np.int32)

    def loss(values, weights, rows):
        return jnp.sum(jnp.sin(embedding_bag(values, rows, weights, implementation=implementation)))

    return loss, *map(jnp.asarray, (values, weights, rows))


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, expected)


def test_eager_is_jit(rng, fast):
    loss, *inputs = problem(rng, fast)
    gradient = jax.grad(loss, (0, 1))
    assert_same(gradient(*inputs), jax.jit(gradient)(*inputs))


def test_vmap_is_a_loop(rng, fast):
    loss, values, weights, rows = problem(rng, fast)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    many_weights, many_rows = jnp.stack([weights, -weights]), jnp.stack([rows, rows[::-1]])
    want = [gradient(values, w, r) for w, r in zip(many_weights, many_rows, strict=True)]
    got = jax.jit(jax.vmap(gradient, (None, 0, 0)))(values, many_weights, many_rows)
    assert_same(got, jax.tree.map(lambda *a: jnp.stack(a), *want))


def test_scan_over_layers_that_share_a_table(rng, fast):
    loss, values, weights, rows = problem(rng, fast)
    layers = jnp.stack([weights, -weights]), jnp.stack([rows, rows[::-1]])

    def scanned(values, weights, rows):
        return jax.lax.scan(lambda sum, layer: (sum + loss(values, *layer), None), 0.0, (weights, rows))[0]

    def unrolled(values, weights, rows):
        return loss(values, weights[0], rows[0]) + loss(values, weights[1], rows[1])

    assert_same(
        jax.jit(jax.grad(scanned, (0, 1)))(values, *layers), jax.jit(jax.grad(unrolled, (0, 1)))(values, *layers)
    )


@pytest.mark.parametrize("differentiated", ["inside", "outside"])
def test_inside_shard_map_each_device_takes_its_own_tokens(rng, differentiated):
    """Every device has the whole table: its gradient is the devices' sum, of the dense form and of the rows read."""
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    values, weights = draw(rng, "float32", ROWS, WIDTH), draw(rng, "float32", 2 * devices, 9)
    rows = rng.integers(-1, ROWS + 1, weights.shape).astype(np.int32)

    def loss(values, weights, rows):
        return jnp.sum(jnp.sin(embedding_bag(values, rows, weights)))

    def inside(values, weights, rows):
        d_values, d_weights = jax.grad(loss, (0, 1))(values, weights, rows)
        touched = embedding_bag_rows_gradient(
            jnp.cos(embedding_bag(values, rows, weights)), rows, weights, num_rows=ROWS
        )
        again = jnp.zeros_like(values).at[touched.rows].add(touched.values, mode="drop")
        return jax.lax.psum(d_values, "data"), d_weights, jax.lax.psum(again, "data")

    def total(*arrays):
        return jax.lax.psum(loss(*arrays), "data")

    manual = functools.partial(jax.shard_map, mesh=mesh, in_specs=(whole, split, split), check_vma=False)
    if differentiated == "inside":
        sharded = manual(inside, out_specs=(whole, split, whole))
    else:
        sharded = jax.grad(manual(total, out_specs=whole), (0, 1))
    d_values, d_weights, *again = jax.jit(sharded)(values, weights, rows)
    want = jax.jit(jax.grad(loss, (0, 1)))(values, weights, rows)
    assert_same((d_values, d_weights), want)
    for each in again:
        assert_same(each, want[0])


def temporary(function, *shapes) -> int:
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_on_a_cpu_nothing_holds_every_row_of_every_token():
    tokens, slots, width = 512, 64, 256
    entries = (tokens, slots)
    shapes = ((64, width), jnp.float32), (entries, jnp.int32), (entries, jnp.float32), ((tokens, width), jnp.float32)
    assert temporary(functools.partial(every, None), *shapes) < tokens * slots * width * 4 / 3


def test_the_gradient_of_the_rows_read_costs_what_was_read():
    def touched(values, rows, weights, dy):
        y, pull = jax.vjp(lambda weights: embedding_bag(values, rows, weights), weights)
        return y, pull(dy), embedding_bag_rows_gradient(dy, rows, weights, num_rows=values.shape[0])

    shapes = ((4, 4), jnp.int32), ((4, 4), jnp.float32), ((4, WIDTH), jnp.float32)
    assert temporary(touched, ((1 << 20, WIDTH), jnp.float32), *shapes) < 1 << 20  # the table has 512 MiB


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": (0, 128)}, r"values: got float32\[0, 128\], expected \[N, D\] or \[N, D / 128, 128\]"),
        ({"values": (8, 2, 64)}, r"values: got float32\[8, 2, 64\], expected \[N, D\] or"),
        ({"dtype": "float16"}, r"values: got float16, expected bfloat16 or float32"),
        (
            {"implementation": "cpu"},
            r"implementation: got 'cpu', expected one of gpu, reference, sparse_core, tpu, xla",
        ),
        (
            {"values": (8, 192), "implementation": "tpu"},
            r"'tpu' cannot take this call \(gpu: rows are 192 wide, .*; tpu: .* multiple of 128; xla: can\)",
        ),
    ],
)
def test_a_misfit_is_named_in_one_line(change, message):
    values = jnp.zeros(change.get("values", (8, 128)), change.get("dtype", "float32"))
    rows, weights = jnp.zeros(change.get("rows", (4, 3)), jnp.int32), jnp.zeros(change.get("weights", (4, 3)))
    with pytest.raises(ValueError, match=message) as caught:
        embedding_bag(values, rows, weights, implementation=change.get("implementation"))
    assert "\n" not in str(caught.value)


def test_a_width_that_no_kernel_takes_is_served_by_xla(rng):
    values, dy = draw(rng, "float32", ROWS, 40), draw(rng, "float32", TOKENS, 40)
    rows, weights = rng.integers(0, ROWS, (TOKENS, 3)).astype(np.int32), draw(rng, "float32", TOKENS, 3)
    check(compiled(None)(values, rows, weights, dy), values, rows, weights, dy)
