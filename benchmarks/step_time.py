"""Training steps of sparse models against the dense step: `python benchmarks/step_time.py [--json FILE]`.

MoT and MoMa (four experts a modality) have the dense model's FLOPs; MoMa with mixture-of-depths has fewer, and a row
beside its time says by how much. The default config, and two layers of the 94M preset with 8192 tokens of text and
image in three mixes. Half of the default's tokens are text, the others image and speech. All arms see the same batch.
"""

import argparse
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
import report

from mot_jax.batch import Batch
from mot_jax.config import Block, Data, Model, Parallel, Run, resolve
from mot_jax.config.experts import Depth, ExpertChoice
from mot_jax.gin_config import load_run
from mot_jax.nn.report import Metrics
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.flops import train_flops_per_token
from mot_jax.training.host_memory import keep_freed_pages
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import init_state
from mot_jax.training.step import make_train_step
from mot_jax.vocabulary import Vocabulary, build_vocabulary

STEPS = 1000  # of the schedule of learning rates
MOMA = {"untied": ("feed_forward",), "feed_forward": ExpertChoice(experts=4)}
ARMS = {  # what each changes of the dense model
    "dense": lambda model: model,
    "MoT": lambda model: dataclasses.replace(model, untied=("attention", "feed_forward", "norm")),
    "MoMa": lambda model: dataclasses.replace(model, **MOMA),
    "MoD+MoMa": lambda model: dataclasses.replace(
        model, **MOMA, plan=((model.num_layers // 2, (Block(depth=Depth()), Block())),)
    ),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model, its batch of rows x length tokens, the modalities' shares of it, and how often to time each arm."""

    model: Model
    rows: int
    length: int
    shares: tuple[float, ...]
    repeats: int


def settings() -> dict[str, Setting]:
    default, _ = load_run(["digits_mot"])
    rows, length = default.data.global_batch_size, default.data.sequence_length
    layers = Model(dim=512, num_layers=2, num_heads=8)
    return {
        f"default config (D=128, L=4, T={rows * length})": Setting(
            dataclasses.replace(default.model, untied=()), rows, length, (0.5, 0.3, 0.2), 60
        ),
        **{
            f"94M layers (D=512, L=2 of 8, T=8192, {text:.0%} text)": Setting(layers, 8, 1024, (text, 1 - text), 6)
            for text in (0.5, 0.9, 1.0)
        },
    }


def packed_batch(vocabulary: Vocabulary, rows: int, length: int, shares: tuple[float, ...]) -> Batch:
    """Full rows of one document each, in runs of one modality as long as an image, in these shares."""
    rng = np.random.default_rng(0)
    run = 16
    modality = np.repeat(rng.choice(len(shares), (rows, length // run), p=shares), run, axis=1).astype(np.int32)
    tokens = np.zeros((rows, length), np.int32)
    for index, name in enumerate(vocabulary.names):
        codes = vocabulary.code_tokens(name)
        tokens = np.where(modality == index, rng.choice(codes, (rows, length)), tokens).astype(np.int32)
    ones = np.ones((rows, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32)[None, :, None], (rows, 1, 1))
    return Batch(tokens, modality, ones, ones, positions, np.roll(tokens, -1, 1), ones.astype(np.float32))


def problem(setting: Setting) -> tuple[Vocabulary, Batch]:
    """What every arm of a setting trains on."""
    others = [("image", 256, 16), ("speech", 200, None)][: len(setting.shares) - 1]
    vocabulary = build_vocabulary(1024, others)
    return vocabulary, packed_batch(vocabulary, setting.rows, setting.length, setting.shares)


def run_of(setting: Setting, arm: str, vocabulary: Vocabulary) -> Run:
    model = resolve(ARMS[arm](setting.model), vocabulary.names, vocabulary.size)
    return Run(model=model, data=Data(global_batch_size=setting.rows, sequence_length=setting.length))


def step_of(run: Run, vocabulary: Vocabulary, batch: Batch) -> Callable[[], Metrics]:
    """A call that runs one step more on this batch."""
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    tx, _ = make_optimizer(run.optimizer, STEPS)
    step = make_train_step(run, vocabulary, mesh, tx)
    states = [init_state(run.model, tx, mesh, 0)]

    def call() -> Metrics:
        states[0], metrics = step(states[0], batch)
        return metrics

    return call


def steps(setting: Setting, arms=ARMS):
    """The step of every arm, each as a call that runs one, and the FLOPs of each step."""
    vocabulary, batch = problem(setting)
    runs = {arm: run_of(setting, arm, vocabulary) for arm in arms}
    calls = {arm: step_of(run, vocabulary, batch) for arm, run in runs.items()}
    tokens = setting.rows * setting.length
    flops = {arm: train_flops_per_token(run.model, setting.length) * tokens for arm, run in runs.items()}
    return calls, flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="also write the rows here")
    args = parser.parse_args()
    keep_freed_pages()  # as train.py does
    rows = []
    for name, setting in settings().items():
        calls, flops = steps(setting)
        seconds = report.alternate(calls, setting.repeats)
        rows += [report.row(f"{arm}: {name}", seconds[arm], "dense", seconds["dense"]) for arm in seconds]
        measured = report.row(f"MoD+MoMa: {name}", seconds["MoD+MoMa"], "MoMa", seconds["MoMa"])
        counted = {"metric": "FLOPs", "value": flops["MoD+MoMa"] / 1e9, "unit": "GFLOP"}
        rows += [measured, {**measured, **counted, "ratio": flops["MoD+MoMa"] / flops["MoMa"]}]
    report.show("training step, optimizer included", rows, args.json)


if __name__ == "__main__":
    main()
