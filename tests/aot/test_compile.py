"""What the compiler's refusals say, and what a backward pass keeps."""

import jax
import jax.numpy as jnp
import pytest

from mot_jax.aot.compile import _needed, saved_for_backward
from mot_jax.aot.topology import parse_target


@pytest.mark.parametrize(
    ("message", "limit", "needed"),
    [
        ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded", 15.75, 20.5),
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (31.40G) exceeds available HBM "
         "(15.75G).", 15.75, 33.4),
    ],
)  # fmt: skip
def test_refusals(message, limit, needed):
    found = _needed(message, parse_target("v5e:2x2"), 2 * 2**30)
    assert found == pytest.approx((limit * 2**30, needed * 2**30))


@pytest.mark.parametrize(("remat", "arrays"), [(False, 5 * 2), (True, 5)])
def test_what_the_forward_pass_keeps(remat, arrays):
    def layer(x, w):
        return jnp.sin(jnp.cos(x) * w), None

    def loss(w, x):
        step = jax.checkpoint(layer) if remat else layer
        return jnp.sum(jax.lax.scan(lambda x, w: step(x, w), x, w)[0])

    x, w = jax.ShapeDtypeStruct((1000,), jnp.float32), jax.ShapeDtypeStruct((5,), jnp.float32)
    kept = saved_for_backward(jax.jit(jax.grad(loss)).trace(w, x).jaxpr.jaxpr)
    assert arrays * 4000 <= kept < (arrays + 6) * 4000
