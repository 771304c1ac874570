"""What grouped products refuse, in one line."""

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas.grouped_matmul import (
    align_rows,
    grouped_feed_forward,
    grouped_matmul,
    grouped_swiglu,
)
from tests.kernels_pallas.grouped import K, N


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
