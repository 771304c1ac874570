"""A run as frozen data: how its model is trained, split over devices, sampled and evaluated."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mot_jax.config.data import Data
from mot_jax.config.frozen import FrozenMapping
from mot_jax.config.model import Model


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValuesOptimizer:
    """AdamW of memory tables, on the others' schedule (arXiv 2412.09764, section 4).

    `touched` updates the rows that were read and leaves the others, their moments too, as they are.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # 0: no clipping; the tables' own norm
    update: Literal["dense", "touched"] = "dense"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW with warmup, a schedule and global-norm clipping."""

    learning_rate: float = 3e-3
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    final_fraction: float = 0.1  # of learning_rate, at the last step
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0  # 0: no clipping
    values: ValuesOptimizer = ValuesOptimizer()  # of Model.memory's tables


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The loop. An interval of 0 turns its work off; any other's is done at the last step too."""

    steps: int = 2000
    seed: int = 0
    accumulation: int = 1  # microbatches per optimizer step
    z_loss: float = 1e-5
    modality_weights: Mapping[str, float] = FrozenMapping()  # by the target's modality; 1 where absent
    max_bad_steps: int = 10  # non-finite steps in a row before the run stops
    init_from: str | None = None  # a run directory: parameters only, copied into groups and experts as it takes
    keep_data: bool = False  # go on in the documents where init_from's run stopped
    only: Literal["auxiliary_routers"] | None = None  # trains these and freezes the rest
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 3
    eval_every: int = 500
    sample_every: int = 500
    profile: tuple[int, int] | None = None  # (first, count): steps traced for a profiler
    task_every: int = 0  # the tasks of Eval.tasks; eval.py does them for a finished run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parallel:
    """Mesh sizes, -1 takes the devices that are left; and what of a parameter is split over which axis.

    `rules` are changes to the table of `config/rules.py`, as in {"embed": "data"}; None splits an axis over nothing.
    """

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    rules: Mapping[str, str | None] = FrozenMapping()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """Decoding, in sample pictures and as the default of `generate`."""

    temperature: float = 0.8
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    guidance: float = 1.0  # 1: none
    max_tokens: int = 64  # of a span whose length is not fixed
    prompts: int = 8  # a direction, in the sample picture


@dataclasses.dataclass(frozen=True, kw_only=True)
class Eval:
    """Held-out evaluation: losses always, tasks by name."""

    batches: int | None = 8  # during training, None: the whole split; eval.py always reads the whole
    tasks: tuple[str, ...] = ()
    prompts: int = 200  # a task
    guidance: float = 2.0  # of the guided half of drawing tasks
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run, whole."""

    model: Model = Model()
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    parallel: Parallel = Parallel()
    sample: Sample = Sample()
    eval: Eval = Eval()
