"""Keeping freed pages: an improvement where the C library can, nothing at all elsewhere."""

import ctypes

import pytest

from mot_jax.training.host_memory import keep_freed_pages


@pytest.mark.parametrize("error", [TypeError, OSError, AttributeError])
def test_platforms_without_mallopt_are_left_alone(monkeypatch, error):
    def no_library(name):
        raise error("none here")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    keep_freed_pages()
