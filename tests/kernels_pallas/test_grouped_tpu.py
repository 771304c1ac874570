"""The grouped products' TPU kernels, interpreted: blocks, precision, races."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas.grouped_matmul import (
    align_rows,
    group_rows,
    tpu_rows,
    tpu_weights,
    xla,
)
from kernels_pallas.schedule import _inner
from tests.kernels_pallas.grouped import (
    K,
    N,
    assert_close,
    compiled,
    draw,
    problem,
)


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
