"""Rotary embedding: only distances matter; Llama-3 scaling leaves fast rotations alone and slows the slow ones."""

import jax.numpy as jnp
import numpy as np

from mot_jax.config import RopeScaling
from mot_jax.nn.rotary import angles, frequencies, rotate


def test_scores_depend_on_distance_alone(rng):
    q, k = rng.standard_normal((2, 1, 1, 1, 16)).astype(np.float32)
    rates = frequencies(16, 10_000.0, None)

    def score(i, j):
        at = lambda x, p: np.asarray(rotate(jnp.asarray(x), *angles(jnp.full((1, 1, 1), p), rates)))  # noqa: E731
        return (at(q, i) * at(k, j)).sum()

    np.testing.assert_allclose(score(3, 1), score(103, 101), rtol=1e-4, atol=1e-4)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_llama_scaling_keeps_short_and_stretches_long_wavelengths():
    scaling = RopeScaling(factor=32.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=8192)
    plain, scaled = frequencies(64, 500_000.0, None), frequencies(64, 500_000.0, scaling)
    wavelength = 2 * np.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_allclose(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 32)
    between = ~short & ~long
    assert between.any() and ((scaled < plain) & (scaled > plain / 32))[between].all()


def test_position_axes_share_out_the_frequencies(rng):
    rates = frequencies(16, 10_000.0, None)
    positions = jnp.asarray(rng.integers(0, 50, (1, 5, 2)))
    cos, _ = angles(positions, rates)
    np.testing.assert_allclose(cos[..., :4], np.cos(positions[..., :1] * rates[:4]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cos[..., 4:], np.cos(positions[..., 1:] * rates[4:]), rtol=1e-4, atol=1e-5)
