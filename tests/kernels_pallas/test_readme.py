"""The README's examples run and print what they say."""

import contextlib
import functools
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

README = pathlib.Path(__file__).parents[2] / "kernels_pallas" / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


@functools.cache
def run(example: str) -> tuple[dict, str]:
    """Its names and what it prints."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example, names)
    return names, out.getvalue()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.search(r"kernels_pallas\.(\w+)", example)[1])
def test_an_example_prints_what_it_says(example):
    said = [line.partition(":")[0] for line in re.findall(r"^print\(.*\)  # (.*)$", example, flags=re.MULTILINE)]
    assert run(example)[1].splitlines() == said
    assert said


def test_every_kernel_has_an_example():
    kernels = {path.parent.name for path in README.parent.glob("*/__init__.py")}
    assert {re.search(r"from kernels_pallas\.(\w+)", example)[1] for example in EXAMPLES} == kernels


def test_a_sum_over_devices_is_the_gradient():
    (example,) = (text for text in EXAMPLES if "shard_map" in text)
    names, _ = run(example)
    x, weights, ids = (names[name] for name in ("x", "weights", "group_ids"))
    expected = jax.grad(lambda w: jnp.sum(jnp.einsum("tk,tkn->tn", x, w[ids]) ** 2))(weights)
    np.testing.assert_allclose(names["gradient"], expected, rtol=1e-4, atol=1e-4 * float(jnp.max(jnp.abs(expected))))
