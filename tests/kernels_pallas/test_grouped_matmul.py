"""The numerics contract of grouped_matmul: every back end against a float64 numpy loop over rows, on fresh inputs."""

import functools
import itertools
import re
import secrets

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import force_gpu_interpret_mode  # public from jax 0.11 on
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from kernels_pallas.grouped_matmul import (
    align_rows,
    gpu_stream,
    group_rows,
    grouped_feed_forward,
    grouped_matmul,
    grouped_swiglu,
    tpu_rows,
    tpu_weights,
    ungroup_rows,
    xla,
)
from kernels_pallas.grouped_matmul.api import IMPLEMENTATIONS
from kernels_pallas.grouped_matmul.xla_runs import _runs
from kernels_pallas.schedule import _inner

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
K, N = 24, 40


@pytest.fixture
def rng():
    """Other numbers on every run; pytest shows the seed of a failed one."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


# An older interpreter reads no transposed block, and drops a store that is partly out of bounds: see test_gpu.py.
gpu = pytest.param("gpu", marks=pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="needs jax 0.11"))


@pytest.fixture(params=[*sorted({*IMPLEMENTATIONS} - {"gpu"}), gpu])
def implementation(request, monkeypatch):
    monkeypatch.setattr(gpu_stream, "MULTIPROCESSORS", 2)  # they run one after the other
    with force_gpu_interpret_mode() if request.param == "gpu" else pltpu.force_tpu_interpret_mode():
        yield request.param


@pytest.fixture(params=["tpu", "xla"])
def fast(request):
    """A back end with a gradient of its own, which transformations could break; the GPU's is too slow to interpret."""
    with pltpu.force_tpu_interpret_mode():
        yield request.param


ROWS, GROUPS, TILE = 70, 4, 16  # shared by most cases, so that they share their compiled programs
GPU_TILE, GPU_K, GPU_N = 64, 48, 80  # the smallest tile, and columns in sixteens
CASES = {
    "uneven": lambda rng: rng.choice(GROUPS, ROWS, p=rng.dirichlet(np.full(GROUPS, 0.5))),
    "unowned rows": lambda rng: rng.integers(-2, GROUPS + 2, ROWS),
    "empty groups": lambda rng: rng.choice([1, 3], ROWS),
    "all in one group": lambda rng: np.full(ROWS, 2),
    "whole tiles": lambda rng: rng.permutation(np.repeat([0, 1, 3, -1], [32, 16, 16, 6])),
    "skew": lambda rng: rng.permutation(np.repeat([0, 1, 2], [60, 1, 9])),
    "nobody": lambda rng: np.full(ROWS, -1),
    "one row": lambda rng: np.array([1]),
    "more groups than rows": lambda rng: rng.integers(0, 40, 7),
}
OTHER_GROUPS = {"more groups than rows": 40}


@pytest.fixture(params=CASES)
def case(request, rng):
    """(ids, number of groups, tile)"""
    ids = CASES[request.param](rng)
    return ids.astype(np.int32), OTHER_GROUPS.get(request.param, GROUPS), TILE if len(ids) == ROWS else None


def draw(rng, dtype, *shape):
    return np.asarray(rng.normal(size=shape), jnp.dtype(dtype))


def float64(*arrays):
    return [np.asarray(a, np.float64) for a in arrays]


def reference(ids, x, *weights):
    """One product a row and matrix; rows nobody owns stay zero."""
    out = np.zeros((len(weights), len(ids), weights[0].shape[2]))
    for row, group in enumerate(ids):
        if 0 <= group < len(weights[0]):
            out[:, row] = [x[row] @ w[group] for w in weights]
    return out


def reference_gradients(ids, x, dy, weights):
    dx, dw = np.zeros_like(x), np.zeros_like(weights)
    for row, group in enumerate(ids):
        if 0 <= group < len(weights):
            dx[row] = weights[group] @ dy[row]
            dw[group] += np.outer(x[row], dy[row])
    return dx, dw


def assert_close(got, expected, dtype):
    assert got.dtype == jnp.dtype(dtype)
    assert got.shape == expected.shape
    (got,) = float64(got)
    assert np.linalg.norm(got - expected) <= TOLERANCE[dtype] * np.linalg.norm(expected)


@functools.cache
def compiled(implementation, groups, tile):
    """Values, slots and gradients of all four products in one program."""

    def one(function, x, dy, ids, *weights):
        layout = align_rows(ids, groups, tile=tile)

        def run(x, *weights):
            slots = function(group_rows(x, layout), *weights, layout, implementation=implementation)
            return ungroup_rows(slots, layout), slots

        y, pull, slots = jax.vjp(run, x, *weights, has_aux=True)
        return y, pull(dy), jnp.where((layout.row_of_slot == layout.num_rows)[:, None], slots, 0)

    def every(ids, x, dy, w, w_up, w_down):
        transposed = functools.partial(grouped_matmul, transpose_weights=True)
        return (
            one(grouped_matmul, x, dy, ids, w),
            one(transposed, x, dy, ids, jnp.swapaxes(w, 1, 2)),
            one(grouped_swiglu, x, dy, ids, w, w_up),
            one(grouped_feed_forward, x, dy, ids, w, w_up, w_down),
        )

    return jax.jit(every)


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


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        *itertools.product(sorted({*IMPLEMENTATIONS} - {"gpu"}), TOLERANCE),
        pytest.param("gpu", "bfloat16", marks=gpu.marks),
    ],
    indirect=["implementation"],
)
def test_values_and_gradients(rng, case, implementation, dtype):
    ids, groups, tile = case
    tile, depth, width = (GPU_TILE, GPU_K, GPU_N) if implementation == "gpu" else (tile, K, N)
    x, dy = draw(rng, dtype, len(ids), depth), draw(rng, dtype, len(ids), width)
    w, w_up = draw(rng, dtype, groups, depth, width), draw(rng, dtype, groups, depth, width)
    w_down = draw(rng, dtype, groups, width, width)
    got = jax.device_get(compiled(implementation, groups, tile)(ids, x, dy, w, w_up, w_down))
    (plain, plain_gradients, _), (transposed, transposed_gradients, _), (swiglu, swiglu_gradients, _), whole = got

    x64, dy64, w64, up64, down64 = float64(x, dy, w, w_up, w_down)
    gate, up = reference(ids, x64, w64, up64)
    dx, dw = reference_gradients(ids, x64, dy64, w64)
    for y, gradients in ((plain, plain_gradients), (transposed, transposed_gradients)):
        assert_close(y, gate, dtype)
        assert_close(gradients[0], dx, dtype)
    assert_close(plain_gradients[1], dw, dtype)
    assert_close(transposed_gradients[1], np.swapaxes(dw, 1, 2), dtype)

    sigmoid = 1 / (1 + np.exp(-gate))
    hidden = gate * sigmoid * up

    def through_gate_and_up(d_hidden):
        from_gate = reference_gradients(ids, x64, d_hidden * up * sigmoid * (1 + gate * (1 - sigmoid)), w64)
        from_up = reference_gradients(ids, x64, d_hidden * gate * sigmoid, up64)
        return from_gate[0] + from_up[0], from_gate[1], from_up[1]

    assert_close(swiglu, hidden, dtype)
    for gradient, expected in zip(swiglu_gradients, through_gate_and_up(dy64), strict=True):
        assert_close(gradient, expected, dtype)

    d_hidden, d_down = reference_gradients(ids, hidden, dy64, down64)
    assert_close(whole[0], reference(ids, hidden, down64)[0], dtype)
    for gradient, expected in zip(whole[1], (*through_gate_and_up(d_hidden), d_down), strict=True):
        assert_close(gradient, expected, dtype)

    empty = np.setdiff1d(np.arange(groups), ids)
    for _, (_, *weight_gradients), padding in got:
        assert not np.any(padding)
        assert not any(np.any(d[empty]) for d in weight_gradients)


def test_zeros_give_exact_zeros(implementation):
    on_gpu = implementation == "gpu"
    tile, depth, width = (GPU_TILE, GPU_K, GPU_N) if on_gpu else (TILE, K, N)
    shapes = (ROWS, depth), (ROWS, width), *[(GROUPS, depth, width)] * 2, (GROUPS, width, width)
    ids = np.arange(-1, ROWS - 1, dtype=np.int32) % 6
    inputs = [np.zeros(shape, jnp.bfloat16 if on_gpu else np.float32) for shape in shapes]
    assert not any(np.any(a) for a in jax.tree.leaves(compiled(implementation, GROUPS, tile)(ids, *inputs)))


@pytest.mark.parametrize(
    ("rows", "depth", "width", "reason"),
    [(0, K, N, "there are no rows"), (10, 0, N, "0 columns"), (10, K, 0, "0 columns")],
)
def test_sizes_of_zero_give_empty_arrays_and_zeros(rng, rows, depth, width, reason):
    ids = rng.integers(0, GROUPS, rows).astype(np.int32)
    shapes = (rows, depth), (rows, width), *[(GROUPS, depth, width)] * 2, (GROUPS, width, width)
    inputs = ids, *(draw(rng, "float32", *shape) for shape in shapes)
    x, _, *weights = inputs[1:]
    whole = jax.eval_shape(compiled(None, GROUPS, TILE), *inputs)
    for asked in ("xla", "reference"):
        got = compiled(asked, GROUPS, TILE)(*inputs)
        assert jax.tree.map(lambda a: (a.shape, a.dtype), got) == jax.tree.map(lambda a: (a.shape, a.dtype), whole)
        assert not any(np.any(a) for a in jax.tree.leaves(got))
        for y, (dx, *_), _ in got:
            assert y.shape == (rows, width)
            assert dx.shape == x.shape
        assert [d.shape for d in got[-1][1][1:]] == [w.shape for w in weights]
    with pytest.raises(ValueError, match=f"tpu: {reason}"):
        jax.eval_shape(compiled("tpu", GROUPS, TILE), *inputs)


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


def test_products_of_bfloat16_accumulate_in_float32(implementation):
    # 256 + 256 / 64: each small term is lost in a sum of bfloat16's eight bits.
    layout = align_rows(jnp.zeros(1, jnp.int32), 1, tile=GPU_TILE if implementation == "gpu" else None)
    x = jnp.zeros((1, 272), jnp.bfloat16).at[:, :257].set(1)
    weights = jnp.concatenate([jnp.full((1, 1, 16), 256.0), jnp.ones((1, 271, 16)) / 64], axis=1).astype(jnp.bfloat16)
    y = grouped_matmul(group_rows(x, layout), weights, layout, implementation=implementation)
    assert y[0, 0] == 260


def test_weight_gradients_of_bfloat16_accumulate_in_float32(implementation):
    # 256 of the first tile and 4 of the others, of which a sum of bfloat16's eight bits would keep nothing.
    tile, others = (GPU_TILE, 16) if implementation == "gpu" else (8, 64)
    x = np.zeros(((1 + others) * tile, 16), jnp.bfloat16)
    x[::tile] = 4 / others
    x[0] = 256

    def run(x, weights):
        layout = align_rows(jnp.zeros(len(x), jnp.int32), 1, tile=tile)
        y, pull = jax.vjp(lambda w: product(group_rows(x, layout), w, layout), weights)
        return pull(jnp.ones_like(y))[0]

    product = functools.partial(grouped_matmul, implementation=implementation)
    np.testing.assert_array_equal(jax.jit(run)(x, np.zeros((1, 16, 16), x.dtype)), 260)


def dots(jaxpr):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for inner in _inner(eqn):
            yield from dots(inner)


@pytest.mark.parametrize("asked", [None, "high"])
def test_a_tpus_products_are_as_exact_as_their_dtype(rng, asked):
    loss, *inputs, ids = problem(rng, "tpu")
    for dtype, exact in (("float32", "HIGHEST"), ("bfloat16", "DEFAULT")):
        with jax.default_matmul_precision(asked):
            found = list(dots(jax.make_jaxpr(jax.grad(loss))(*(a.astype(dtype) for a in inputs), ids).jaxpr))
        assert found
        for dot in found:
            assert dot.params["precision"] == (jax.lax.Precision[exact],) * 2
            assert dot.outvars[0].aval.dtype == jnp.float32


def test_tpu_blocks_narrower_than_the_matrices(rng):
    ids, depth, width, wide = rng.choice([0, 2], 50).astype(np.int32), 200, 333, (128,)
    layout = jax.jit(functools.partial(align_rows, num_groups=4, tile=16))(ids)
    x, dy = (group_rows(jnp.asarray(draw(rng, "float32", 50, size)), layout) for size in (depth, width))
    up, gate = (jnp.asarray(draw(rng, "float32", 4, depth, width)) for _ in range(2))
    with pltpu.force_tpu_interpret_mode():
        got = (
            tpu_rows.product((x,), (up,), layout, transpose=False, block=wide),
            tpu_rows.product((dy, -dy), (up, gate), layout, transpose=True, block=wide),
            *tpu_rows.swiglu(x, gate, up, layout, keep=True, block=wide),
            tpu_weights.weight_gradient(x, dy, layout, block=(128, 256)),
        )
    gated = xla.swiglu(x, gate, up, layout, keep=True)
    both = xla.matmul(dy, up, layout, transpose=True) - xla.matmul(dy, gate, layout, transpose=True)
    _, gradient = xla.matmul_gradient(x, up, dy, layout, transpose=False)
    for mine, expected in zip(got, (xla.matmul(x, up, layout, transpose=False), both, *gated, gradient), strict=True):
        assert_close(mine, np.asarray(expected, np.float64), "float32")


def racing(x):
    """Reads what a copy is still writing."""

    def kernel(x, out, scratch, done):
        copy = pltpu.make_async_copy(x, scratch, done)
        copy.start()
        out[...] = scratch[...]
        copy.wait()

    scratch = [pltpu.VMEM(x.shape, x.dtype), pltpu.SemaphoreType.DMA]
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, in_specs=[anywhere], out_shape=shape, scratch_shapes=scratch)(x)


def test_tpu_kernels_race_with_nothing(rng, capfd):
    ids = rng.choice([0, 2], 40).astype(np.int32)
    x, dy = draw(rng, "float32", 40, K), draw(rng, "float32", 40, N)
    weights = [draw(rng, "float32", 3, *shape) for shape in ((K, N), (K, N), (N, N))]
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(detect_races=True)):
        jax.block_until_ready(compiled.__wrapped__("tpu", 3, 16)(ids, x, dy, *weights))
        assert "RACE" not in capfd.readouterr().out
        jax.block_until_ready(jax.jit(racing)(x))
    assert "RACE" in capfd.readouterr().out


def problem(rng, implementation):
    """A loss of (x, weights, ids) over two products, small enough to be transformed in every way."""
    x, weights = (jnp.asarray(draw(rng, "float32", *shape)) for shape in ((33, K), (3, K, N)))
    weights, ids = weights / K**0.5, jnp.asarray(rng.integers(-1, 3, 33), jnp.int32)

    def loss(x, weights, ids):
        layout = align_rows(ids, 3, tile=16)
        rows = group_rows(x, layout)
        h = grouped_swiglu(rows, weights, weights + 1, layout, implementation=implementation)
        y = grouped_matmul(h, weights, layout, transpose_weights=True, implementation=implementation)
        down = jnp.swapaxes(weights, 1, 2)
        y = y + grouped_feed_forward(rows, weights, weights - 1, down, layout, implementation=implementation)
        return jnp.sum(jnp.sin(ungroup_rows(y, layout)))

    return loss, x, weights, ids


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, expected)


def test_rematerialised_gradient_is_the_gradient(rng, fast):
    if fast == "tpu":
        pytest.skip("interpret mode calls back to Python, which cannot be rematerialised; test_compiled compiles it")
    loss, *inputs = problem(rng, fast)
    plain = jax.jit(jax.grad(loss, (0, 1)))(*inputs)
    assert_same(jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))(*inputs), plain)


def test_vmap_is_a_loop(rng, fast):
    loss, x, weights, ids = problem(rng, fast)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    xs, many_ids = jnp.stack([x, -x]), jnp.stack([ids, (ids + 2) % 4 - 1])
    expected = [gradient(a, weights, i) for a, i in zip(xs, many_ids, strict=True)]
    got = jax.vmap(gradient, (0, None, 0))(xs, weights, many_ids)
    assert_same(got, jax.tree.map(lambda *a: jnp.stack(a), *expected))
    same_layout = jax.vmap(gradient, (0, None, None))(xs, weights, ids)
    assert_same(jax.tree.map(lambda a: a[0], same_layout), expected[0])


def test_scan_over_layers_is_a_loop(rng, fast):
    _, x, weights, ids = problem(rng, fast)
    layers = jnp.stack([weights, -weights])

    def layer(h, weights, layout):
        y = grouped_swiglu(h, weights, weights, layout, implementation=fast)
        return h + grouped_matmul(y, weights, layout, transpose_weights=True, implementation=fast)

    def scanned(x, layers):
        layout = align_rows(ids, 3, tile=16)
        h, _ = jax.lax.scan(lambda h, w: (layer(h, w, layout), None), group_rows(x, layout), layers)
        return jnp.sum(jnp.sin(h))

    def unrolled(x, layers):
        layout = align_rows(ids, 3, tile=16)
        return jnp.sum(jnp.sin(layer(layer(group_rows(x, layout), layers[0], layout), layers[1], layout)))

    assert_same(jax.jit(jax.grad(scanned, (0, 1)))(x, layers), jax.jit(jax.grad(unrolled, (0, 1)))(x, layers))


def test_inside_shard_map_each_device_groups_its_own_rows(rng, fast):
    loss, x, weights, _ = problem(rng, fast)
    devices = min(8, jax.device_count())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jnp.asarray(draw(rng, "float32", devices, *x.shape))
    ids = jnp.asarray(rng.integers(-1, 3, (devices, x.shape[0])), jnp.int32).at[0].set(1)

    def local(x, weights, ids):
        value, gradient = jax.value_and_grad(loss, 1)(x[0], weights, ids[0])
        return jax.lax.psum((value, gradient), "data")

    split = PartitionSpec("data")
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(split, PartitionSpec(), split), out_specs=PartitionSpec(), check_vma=False
    )
    alone = jax.jit(jax.value_and_grad(loss, 1))
    each = [alone(a, weights, i) for a, i in zip(xs, ids, strict=True)]
    assert_same(jax.jit(sharded)(xs, weights, ids), jax.tree.map(lambda *a: sum(a), *each))


def test_a_policy_can_save_the_products_by_name(rng):
    loss, *inputs = problem(rng, "xla")
    loops = {}
    for name, policy in {
        "nothing": jax.checkpoint_policies.nothing_saveable,
        "named": jax.checkpoint_policies.save_only_these_names("grouped_matmul"),
    }.items():
        text = str(jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy)))(*inputs))
        loops[name] = text.count(" while[")
    assert loops["named"] < loops["nothing"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": (15, K)}, r"x: got float32\[15, 24\], expected \[P="),
        ({"weights": (4, K, N)}, r"weights: got float32\[4, 24, 40\], expected float32\[G=3, K=24, N\]"),
        ({"weights": (3, K + 1, N)}, r"weights: got float32\[3, 25, 40\], expected float32\[G=3, K=24, N\]"),
        ({"weights": (3, K, N), "transpose_weights": True}, r"weights: .* expected float32\[G=3, N, K=24\]"),
        ({"dtype": "bfloat16"}, r"weights: got bfloat16\[3, 24, 40\], expected float32"),
        ({"implementation": "xlaa"}, r"implementation: got 'xlaa', expected one of gpu, reference, tpu, xla"),
        ({"implementation": "tpu", "tile": 12}, r"'tpu' cannot take .*tpu: tiles hold 12 rows, .* 8; xla: can\)"),
        (
            {"implementation": "gpu"},
            r"'gpu' cannot take .*\(gpu: rows are float32, expected bfloat16; tpu: can on tpu; xla: can\)",
        ),
    ],
)
def test_a_misfit_is_named_in_one_line(change, message):
    layout = align_rows(jnp.zeros(10, jnp.int32), 3, tile=change.get("tile", 8))
    x = jnp.zeros(change.get("x", (layout.num_slots, K)))
    weights = jnp.zeros(change.get("weights", (3, K, N)), change.get("dtype", "float32"))
    options = {k: v for k, v in change.items() if k in ("transpose_weights", "implementation")}
    with pytest.raises(ValueError, match=message) as caught:
        grouped_matmul(x, weights, layout, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", ["gpu", "tpu"])
def test_kernels_of_another_platform_are_refused_where_the_program_is_compiled(asked):
    layout = align_rows(jnp.zeros(10, jnp.int32), 3, tile=64)
    x, weights = jnp.zeros((layout.num_slots, 32), jnp.bfloat16), jnp.zeros((3, 32, 16), jnp.bfloat16)

    def product(x):
        return grouped_matmul(x, weights, layout, implementation=asked)

    def gradient(xs):
        return jax.grad(lambda xs: jnp.sum(jax.vmap(product)(xs)))(xs)

    message = rf"'{asked}' cannot .* \(gpu: compiled for cpu, expected cuda; tpu: compiled for cpu, .* tpu; xla: can\)"
    for function, argument in ((product, x), (jax.jit(product), x), (jax.jit(gradient), x[None])):
        with pytest.raises(ValueError, match=message):
            function(argument)
    if asked == "tpu":  # the same trace, for a machine that is not this one
        lowered = jax.jit(gradient).trace(x[None]).lower(lowering_platforms=("tpu",))
        assert "tpu_custom_call" in lowered.as_text()


def test_the_matrix_that_differs_is_named():
    layout = align_rows(jnp.zeros(10, jnp.int32), 3, tile=8)
    x, w_gate = jnp.zeros((layout.num_slots, K)), jnp.zeros((3, K, N))
    with pytest.raises(ValueError, match=r"w_up: got bfloat16\[3, 24, 40\], expected float32\[G=3, K=24, N=40\]"):
        grouped_swiglu(x, w_gate, jnp.zeros((3, K, N), jnp.bfloat16), layout)
    with pytest.raises(ValueError, match=r"w_down: got bfloat16\[3, 40, 24\], expected float32\[G=3, F=40, N\]"):
        grouped_feed_forward(x, w_gate, w_gate, jnp.zeros((3, N, K), jnp.bfloat16), layout)
