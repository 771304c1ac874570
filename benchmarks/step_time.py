"""A MoT training step against the dense step of equal FLOPs: `python benchmarks/step_time.py [--json FILE]`.

Two settings: the default digits config's model (T = 1024), and width 512 with 8192 tokens (the 94M preset's layers).
Tokens are half text, half image (and speech in the default); both arms see the same batch.
"""

import argparse
import dataclasses

import jax
import numpy as np
import report

from mot_jax.batch import Batch
from mot_jax.config import Data, Model, Optimizer, Parallel, Run, resolve
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import init_state
from mot_jax.training.step import make_train_step
from mot_jax.vocabulary import Vocabulary, build_vocabulary

ALL = ("attention", "feed_forward", "norm")
SETTINGS = {
    "default (D=128, L=4, T=1024)": (Model(dim=128, num_layers=4, num_heads=4, ffn_dim=344), 4, 256, 60),
    "94M layers (D=512, L=2 of 8, T=8192)": (Model(dim=512, num_layers=2, num_heads=8), 8, 1024, 6),
}
SHARES = {"default (D=128, L=4, T=1024)": (0.5, 0.3, 0.2), "94M layers (D=512, L=2 of 8, T=8192)": (0.5, 0.5)}


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


def steps(name: str):
    """The dense and the MoT step of a setting, each as a call that runs one."""
    model, rows, length, _ = SETTINGS[name]
    others = [("image", 256, 16), ("speech", 200, None)][: len(SHARES[name]) - 1]
    vocabulary = build_vocabulary(1024, others)
    batch = packed_batch(vocabulary, rows, length, SHARES[name])
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    tx, _ = make_optimizer(Optimizer(), 1000)
    calls = {}
    for arm, untied in (("dense", ()), ("mot", ALL)):
        resolved = resolve(dataclasses.replace(model, untied=untied), vocabulary.names, vocabulary.size)
        run = Run(model=resolved, data=Data(global_batch_size=rows, sequence_length=length))
        step = make_train_step(run, vocabulary, mesh, tx)
        states = [init_state(resolved, tx, mesh, 0)]

        def call(step=step, states=states):
            states[0], metrics = step(states[0], batch)
            return metrics

        calls[arm] = call
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="also write the rows here")
    args = parser.parse_args()
    rows = []
    for name, (_, _, _, repeats) in SETTINGS.items():
        seconds = report.alternate(steps(name), repeats)
        rows += [report.row(f"{arm}: {name}", seconds[arm], "dense", seconds["dense"]) for arm in seconds]
    report.show("training step, optimizer included", rows, args.json)


if __name__ == "__main__":
    main()
