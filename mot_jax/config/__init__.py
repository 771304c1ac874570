"""Everything a run is, as frozen data. Nothing here imports jax; `gin_config` fills these from files.

Axis letters used throughout the project: B batch, S sequence, T flat tokens, D model, N heads, K key/value heads,
H head dimension, F feed-forward, G groups, M modalities, V vocabulary, A position axes.
"""

from mot_jax.config.data import Data, Digits, Facts, Pictures, Source
from mot_jax.config.frozen import FrozenMapping
from mot_jax.config.model import Block, Model, RopeScaling
from mot_jax.config.model_checks import check_model, resolve
from mot_jax.config.plan import (
    Pool,
    default_ffn_dim,
    expand,
    expert_dim,
    group_names,
    group_of_modality,
    has_experts,
    has_memory,
    heads,
    pools,
    sees_future,
    selects,
)
from mot_jax.config.rules import RULES, Rules, rules_with
from mot_jax.config.run import Eval, Optimizer, Parallel, Run, Sample, Train, ValuesOptimizer
from mot_jax.config.run_checks import check_run

__all__ = [
    "RULES",
    "Block",
    "Data",
    "Digits",
    "Eval",
    "Facts",
    "FrozenMapping",
    "Model",
    "Optimizer",
    "Parallel",
    "Pictures",
    "Pool",
    "RopeScaling",
    "Rules",
    "Run",
    "Sample",
    "Source",
    "Train",
    "ValuesOptimizer",
    "check_model",
    "check_run",
    "default_ffn_dim",
    "expand",
    "expert_dim",
    "group_names",
    "group_of_modality",
    "has_experts",
    "has_memory",
    "heads",
    "pools",
    "resolve",
    "rules_with",
    "sees_future",
    "selects",
]
