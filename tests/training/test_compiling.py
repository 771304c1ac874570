"""What XLA is told on a CPU: nothing that this jaxlib does not know, and nothing on other platforms."""

import jax

from mot_jax.config import Parallel
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training import compiling


def test_options_are_given_on_a_cpu_and_known_to_this_jaxlib():
    mesh = make_mesh(Parallel(), jax.devices("cpu")[:1])
    options = compiling.compiler_options(mesh)
    assert options == compiling.CPU
    jax.jit(lambda x: x @ x, compiler_options=options)(jax.numpy.ones((8, 8)))


def test_options_that_a_jaxlib_does_not_know_are_left_out(monkeypatch):
    mesh = make_mesh(Parallel(), jax.devices("cpu")[:1])
    monkeypatch.setattr(compiling, "CPU", {"xla_cpu_of_another_year": "1"})
    compiling._known.cache_clear()
    try:
        assert compiling.compiler_options(mesh) is None
    finally:
        compiling._known.cache_clear()
