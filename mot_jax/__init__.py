"""Sparse mixed-modal transformers in JAX: configs, documents and codecs, training runs and generation.

Attributes load on first use, so that importing the package stays light.
"""

import importlib

__version__ = "0.1.0"

_PLACES = {
    **dict.fromkeys(
        ("Block", "Data", "Digits", "Eval", "Model", "Optimizer", "Parallel", "RopeScaling", "Run", "Sample", "Source")
        + ("Train",),
        "mot_jax.config",
    ),
    "Codec": "mot_jax.codecs.protocol",
    "DatasetWriter": "mot_jax.data.dataset",
    "Document": "mot_jax.documents",
    "Modality": "mot_jax.vocabulary",
    "Span": "mot_jax.documents",
    "UserError": "mot_jax.errors",
    "Vocabulary": "mot_jax.vocabulary",
    "load": "mot_jax.run",
    "open_dataset": "mot_jax.data.dataset",
}

__all__ = ["__version__", *_PLACES]  # noqa: PLE0604  (names are known, values are not loaded yet)


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module 'mot_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
