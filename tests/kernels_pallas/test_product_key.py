"""The contract of product_key_topk: every back end against float64 numpy over all R^2 keys, on fresh inputs."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret.params import force_gpu_interpret_mode
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from kernels_pallas.product_key import networks, pairs, product_key_topk, tpu, xla
from kernels_pallas.product_key.api import IMPLEMENTATIONS

GRADIENT = {"float32": 1e-5, "bfloat16": 1e-2}
# XLA's CPU compiler takes minutes to fuse an interpreted sorting network, and seconds not to.
UNFUSED = {"xla_disable_hlo_passes": "fusion"}


@pytest.fixture(params=sorted(IMPLEMENTATIONS))
def implementation(request):
    with force_gpu_interpret_mode() if request.param == "gpu" else pltpu.force_tpu_interpret_mode():
        yield request.param


@pytest.fixture(params=["tpu", "xla"])
def fast(request):
    """A back end that transformations could break; the GPU's is too slow to interpret."""
    with pltpu.force_tpu_interpret_mode():
        yield request.param


# (T, H, d, R, k, dtype)
CASES = {
    "k = 32, R not a power of two": (70, 2, 16, 41, 32, "float32"),
    "more tokens than a tile": (1030, 1, 8, 9, 4, "float32"),
    "bfloat16, heads wider than lanes": (33, 2, 72, 24, 5, "bfloat16"),
    "one token, k = 1": (1, 3, 4, 7, 1, "float32"),
    "k above R": (5, 1, 4, 4, 10, "float32"),
    "every key": (5, 2, 4, 3, 9, "float32"),
    "one key": (3, 1, 4, 1, 1, "bfloat16"),
}


def draw(rng, tokens, heads, depth, num_keys, dtype):
    shapes = (tokens, heads, 2, depth), (heads, 2, num_keys, depth)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@functools.cache
def compiled(implementation, k, packed=False):
    call = functools.partial(product_key_topk, k=k, packed=packed, implementation=implementation)
    return jax.jit(call, compiler_options=UNFUSED if implementation in ("gpu", "tpu") else None)


def every_score(queries, sub_keys):
    """float64 [T, H, R^2]"""
    queries, sub_keys = (np.asarray(a, np.float64) for a in (queries, sub_keys))
    first, second = np.einsum("thpd,hprd->pthr", queries, sub_keys)
    return (first[..., :, None] + second[..., None, :]).reshape(*first.shape[:2], -1)


def assert_best(scores, rows, every, k, error):
    """The rows differ, have the scores returned, and no others score more: up to `error`."""
    assert scores.dtype == jnp.float32
    assert rows.dtype == jnp.int32
    assert scores.shape == rows.shape == (*every.shape[:2], k)
    scores, rows = np.asarray(scores, np.float64), np.asarray(rows)
    assert np.all(np.diff(np.sort(rows), axis=-1) > 0)
    assert np.all(np.diff(scores) <= 0)
    np.testing.assert_allclose(scores, np.take_along_axis(every, rows, -1), rtol=0, atol=error)
    np.testing.assert_allclose(scores, -np.sort(-every)[..., :k], rtol=0, atol=error)


@pytest.mark.parametrize("case", CASES)
def test_no_key_scores_more_than_the_best(rng, implementation, case):
    *sizes, k, dtype = CASES[case]
    queries, sub_keys = draw(rng, *sizes, dtype)
    every = every_score(queries, sub_keys)
    assert_best(*compiled(implementation, k)(queries, sub_keys), every, k, error=1e-5 * np.abs(every).max())


@pytest.mark.parametrize("k", [7, 32])
def test_equal_scores_fill_the_places_once(rng, implementation, k):
    """Small integers: sums are exact, and most are equal to others."""
    queries, sub_keys = (jnp.asarray(rng.integers(-1, 2, s), "float32") for s in ((40, 1, 2, 3), (1, 2, 20, 3)))
    queries = queries.at[0].set(0)  # for which all keys score zero
    run = compiled(implementation, k)
    scores, rows = run(queries, sub_keys)
    assert_best(scores, rows, every_score(queries, sub_keys), k, error=0)
    np.testing.assert_array_equal(rows, run(queries, sub_keys)[1])


def test_among_equal_keys_the_first_come_first_by_xla(rng):
    queries, sub_keys = jnp.zeros((3, 1, 2, 4)), jnp.ones((1, 2, 600, 4))
    _, rows = product_key_topk(queries, sub_keys, 5, implementation="xla")
    np.testing.assert_array_equal(rows, np.broadcast_to(np.arange(5), rows.shape))


@pytest.mark.parametrize(("num_keys", "k"), [(513, 32), (1024, 8), (515, 1)])
def test_groups_of_keys_hide_none(rng, num_keys, k):
    queries, sub_keys = draw(rng, 20, 1, 4, num_keys, "float32")
    assert num_keys >= xla.GROUPED > xla.GROUP * k
    scores, rows = product_key_topk(queries, sub_keys, k, implementation="xla")
    every = every_score(queries, sub_keys)
    assert_best(scores, rows, every, k, error=1e-5 * np.abs(every).max())


def test_off_a_cpu_xla_gives_the_same(rng):
    queries, sub_keys = draw(rng, 30, 2, 8, 40, "float32")
    for mine, other in zip(xla._at_once(queries, sub_keys, k=20), compiled("xla", 20)(queries, sub_keys), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5)


def test_scores_of_bfloat16_accumulate_in_float32(implementation):
    # 256 + 256 / 64: each small term is lost in a sum of bfloat16's eight bits.
    queries = jnp.ones((1, 1, 2, 257), jnp.bfloat16)
    sub_keys = jnp.full((1, 2, 1, 257), 1 / 64, jnp.bfloat16).at[..., 0].set(256)
    assert compiled(implementation, 1)(queries, sub_keys)[0].item() == 520


@pytest.mark.parametrize("dtype", GRADIENT)
def test_gradients_are_those_of_the_selected_scores(rng, implementation, dtype):
    tokens, heads, depth, num_keys, k = 300, 2, 8, 12, 6  # two chunks of tokens; keys are selected many times over
    queries, sub_keys = draw(rng, tokens, heads, depth, num_keys, dtype)
    cotangent = jnp.asarray(rng.normal(size=(tokens, heads, k)), jnp.float32)
    call = functools.partial(product_key_topk, k=k, implementation=implementation)

    def run(queries, sub_keys):
        (_, rows), pull = jax.vjp(call, queries, sub_keys)
        return rows, pull((cotangent, np.zeros(cotangent.shape, jax.dtypes.float0)))

    options = UNFUSED if implementation in ("gpu", "tpu") else None
    rows, got = jax.jit(run, compiler_options=options)(queries, sub_keys)
    q, s, dy = (np.asarray(a, np.float64) for a in (queries, sub_keys, cotangent))
    dq, ds = np.zeros_like(q), np.zeros_like(s)
    for t, h, j in np.ndindex(*rows.shape):
        for half, key in enumerate(divmod(int(rows[t, h, j]), num_keys)):
            dq[t, h, half] += dy[t, h, j] * s[h, half, key]
            ds[h, half, key] += dy[t, h, j] * q[t, h, half]
    for mine, expected in zip(got, (dq, ds), strict=True):
        assert mine.dtype == jnp.dtype(dtype)
        error = np.linalg.norm(np.asarray(mine, np.float64) - expected) / np.linalg.norm(expected)
        assert error <= GRADIENT[dtype]


def test_packed_indices_cost_what_is_said(rng, fast):
    num_keys = 41
    queries, sub_keys = draw(rng, 70, 2, 16, num_keys, "float32")
    scores, rows = compiled(fast, 32, packed=True)(queries, sub_keys)
    every = every_score(queries, sub_keys)
    halves = np.abs(np.einsum("thpd,hprd->pthr", np.float64(queries), np.float64(sub_keys))).max()
    error = 2 * halves * 2.0 ** ((num_keys - 1).bit_length() - 23)
    assert_best(scores, rows, every, 32, error=error + 1e-5 * halves)
    exact, _ = compiled(fast, 32)(queries, sub_keys)
    assert (fast == "tpu") == bool(np.any(exact != scores))  # so it is another program


def loss(queries, sub_keys, implementation):
    scores, rows = product_key_topk(queries, sub_keys, 3, implementation=implementation)
    return jnp.sum(jnp.sin(scores) * jnp.cos(rows))


def assert_same(got, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, expected)


def test_vmap_and_scan_are_loops(rng, fast):
    gradient = jax.jit(jax.value_and_grad(functools.partial(loss, implementation=fast), (0, 1)))
    (queries, sub_keys), (more, other_keys) = (draw(rng, 9, 2, 4, 6, "float32") for _ in range(2))
    both, both_keys = jnp.stack([queries, more]), jnp.stack([sub_keys, other_keys])
    one_by_one = [gradient(queries, sub_keys), gradient(more, other_keys)]
    expected = jax.tree.map(lambda *a: jnp.stack(a), *one_by_one)
    assert_same(jax.vmap(gradient)(both, both_keys), expected)
    _, scanned = jax.jit(lambda *a: jax.lax.scan(lambda _, x: (None, gradient(*x)), None, a))(both, both_keys)
    assert_same(scanned, expected)
    shared = jax.vmap(gradient, (0, None))(both, sub_keys)
    assert_same(jax.tree.map(lambda a: a[0], shared), one_by_one[0])


def test_inside_shard_map_each_device_takes_its_own_tokens(rng, fast):
    # The interpreter's callbacks of eight devices at once can wait for one another for ever.
    devices = 1 if fast == "tpu" else min(8, jax.device_count())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    queries, sub_keys = draw(rng, 3 * devices, 2, 4, 6, "float32")
    gradient = jax.value_and_grad(functools.partial(loss, implementation=fast), 1)
    split, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(
        lambda *a: jax.lax.psum(gradient(*a), "data"),
        mesh=mesh,
        in_specs=(split, whole),
        out_specs=whole,
        check_vma=False,
    )
    assert_same(jax.jit(sharded)(queries, sub_keys), jax.jit(gradient)(queries, sub_keys))


def test_networks_sort_and_merge_whatever_they_get(rng):
    for n, most in itertools.product((1, 2, 8, 32), (32, 64)):
        entries = [(np.float32(v), i) for i, v in enumerate(rng.integers(0, 9, n))]
        assert [e[0] for e in networks.sort(entries)] == sorted((e[0] for e in entries), reverse=True)
        for m in (1, 3, n):
            lists = [[(v,) for v in -np.sort(-rng.normal(size=size)).astype("float32")] for size in (m, n, 5)]
            every = sorted(itertools.chain(*lists), reverse=True)
            assert networks.merge_all(lists, most)[: len(every)] == every[:most]


@pytest.mark.parametrize(("k", "most", "count"), [(1, 1, 1), (32, 32, 119), (10, 4, 13), (9, 3, 9)])
def test_pairs_come_once_and_in_sorted_runs(k, most, count):
    runs = pairs.sorted_runs(k, most)
    every = list(itertools.chain(*runs))
    expected = {(i, j) for i in range(most) for j in range(most) if (i + 1) * (j + 1) <= k}
    assert len(every) == count
    assert set(every) == expected
    for run in runs:
        assert all(a <= c and b <= d for (a, b), (c, d) in itertools.pairwise(run))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": (5, 2, 3, 8)}, r"queries: got float32\[5, 2, 3, 8\], expected \[T, H, 2, d\]"),
        ({"sub_keys": (3, 2, 9, 8)}, r"sub_keys: got float32\[3, 2, 9, 8\], expected float32\[H=2, 2, R, d=8\]"),
        ({"sub_keys": (2, 2, 9, 7)}, r"sub_keys: got float32\[2, 2, 9, 7\], expected float32\[H=2, 2, R, d=8\]"),
        ({"dtype": "bfloat16"}, r"sub_keys: got bfloat16.*, expected float32\[H=2, 2, R, d=8\]"),
        ({"sub_keys": (2, 2, 46_341, 8)}, r"sub_keys: got R=46341, expected at most 46340: .* int32"),
        ({"k": 82}, r"k: got 82, expected 1 to R\^2 = 81"),
        ({"k": 0}, r"k: got 0, expected 1 to R\^2 = 81"),
        ({"implementation": "cpu"}, r"implementation: got 'cpu', expected one of gpu, reference, tpu, xla"),
        (
            {"implementation": "tpu", "k": 40},
            r"'tpu' cannot .*\(gpu: k is 40, .*; tpu: k is 40, expected at most 32; xla: can\)",
        ),
        ({"implementation": "tpu", "sub_keys": (2, 2, 40_000, 8)}, r"tpu: one head's keys .* VMEM, expected at most"),
    ],
)
def test_a_misfit_is_named_in_one_line(change, message):
    queries = jnp.zeros(change.get("queries", (5, 2, 2, 8)))
    sub_keys = jnp.zeros(change.get("sub_keys", (2, 2, 9, 8)), change.get("dtype", "float32"))
    with pytest.raises(ValueError, match=message) as caught:
        product_key_topk(queries, sub_keys, change.get("k", 4), implementation=change.get("implementation"))
    assert "\n" not in str(caught.value)


def test_what_the_kernel_cannot_take_goes_to_xla(rng):
    queries, sub_keys = draw(rng, 4, 1, 4, 7, "float32")
    assert tpu.unsupported(queries, sub_keys, 40)
    scores, rows = product_key_topk(queries, sub_keys, 40)
    assert_best(scores, rows, every_score(queries, sub_keys), 40, error=1e-5)
