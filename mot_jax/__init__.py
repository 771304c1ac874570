"""Sparse mixed-modal transformers in JAX: configs, documents and codecs, training runs and generation.

Attributes load on first use, so that importing the package stays light.
"""

import importlib

__version__ = "0.1.0"

_PLACES = {
    "Block": "mot_jax.config",
    "Codec": "mot_jax.codecs.protocol",
    "Data": "mot_jax.config",
    "DatasetWriter": "mot_jax.data.dataset",
    "Digits": "mot_jax.config",
    "Document": "mot_jax.documents",
    "Eval": "mot_jax.config",
    "load": "mot_jax.run",
    "Modality": "mot_jax.vocabulary",
    "Model": "mot_jax.config",
    "open_dataset": "mot_jax.data.dataset",
    "Optimizer": "mot_jax.config",
    "Parallel": "mot_jax.config",
    "register_task": "mot_jax.evaluation.tasks",
    "RopeScaling": "mot_jax.config",
    "Run": "mot_jax.config",
    "Sample": "mot_jax.config",
    "Source": "mot_jax.config",
    "Span": "mot_jax.documents",
    "Train": "mot_jax.config",
    "UserError": "mot_jax.errors",
    "Vocabulary": "mot_jax.vocabulary",
}

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str):
    if name not in _PLACES:
        raise AttributeError(f"module 'mot_jax' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
