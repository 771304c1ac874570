"""Flips single bits of a checkpoint's files: `python tests/proofs/bit_flips.py [--flips 30] [--seed 0]`.

A small run with a memory layer (bfloat16 tables) leaves two checkpoints. Half of the flips fall anywhere in the newest
one's bytes, half in any of its files, however small. Each must be found and named, and the older checkpoint restored
exactly; or, in a file that nothing is restored from, change nothing of what is restored. Exit code 1 where one does
neither. Everything is in a temporary directory.
"""

import argparse
import collections
import os
import pathlib
import sys
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import jax
import numpy as np

from mot_jax import config
from mot_jax.data.dataset import open_dataset
from mot_jax.gin_config import load_run
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.checkpoint import Checkpoints, Restored
from mot_jax.training.loop import train
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import TrainState, abstract_state
from tests.training.conftest import write_dataset

CONFIG = ("Model.dim = 32", "Model.num_layers = 2", "Model.num_heads = 2", "Model.ffn_dim = 64")
CONFIG += ("Model.memory = @Memory()", "Memory.layers = (1,)", "Memory.num_keys = 16", "Memory.top_k = 4")
CONFIG += ("Memory.dtype = 'bfloat16'", "Data.sequence_length = 48", "Data.global_batch_size = 8")
CONFIG += ("Train.steps = 4", "Train.checkpoint_every = 2", "Train.log_every = 3", "Train.eval_every = 0")
CONFIG += ("Train.sample_every = 0", "Optimizer.warmup_steps = 1")
SAVED = (2, 4)


def trained(place: pathlib.Path) -> TrainState:
    """Trains in place/run; the state it left, as shapes."""
    data = write_dataset(place / "data")
    run, text = load_run((), [f"Data.path = '{data}'", *CONFIG])
    train(run, place / "run", "never", text)
    vocabulary = open_dataset(data).vocabulary
    model = config.resolve(run.model, vocabulary.names, vocabulary.size)
    tx, _ = make_optimizer(run.optimizer, run.train.steps)
    return abstract_state(model, tx, make_mesh(run.parallel))


def restore(directory: pathlib.Path, state: TrainState, step: int | None = None) -> tuple[Restored, list[str]]:
    """What is restored, on the host, and what was said."""
    said = []
    with Checkpoints(directory, report=said.append) as checkpoints:
        return jax.device_get(checkpoints.restore(state, step)), said


def equal(a: Restored, b: Restored) -> bool:
    pairs = zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True)
    same = all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)
    return same and (a.step, a.data_state, a.meta) == (b.step, b.data_state, b.meta)


def flip(file: pathlib.Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def draw(files: list[pathlib.Path], number: int, rng: np.random.Generator) -> tuple[pathlib.Path, int]:
    """A file and a bit of it: of all bytes alike, or of all files alike."""
    sizes = np.array([file.stat().st_size for file in files])
    file = files[rng.choice(len(files), p=sizes / sizes.sum() if number % 2 == 0 else None)]
    return file, int(rng.integers(8 * file.stat().st_size))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, results = np.random.default_rng(args.seed), collections.Counter()
    with tempfile.TemporaryDirectory(prefix="flips") as name:
        state = trained(pathlib.Path(name))
        directory = pathlib.Path(name) / "run" / "checkpoints"
        older, newer = (restore(directory, state, step)[0] for step in SAVED)
        place = directory / str(SAVED[-1])
        files = sorted(path for path in place.rglob("*") if path.is_file() and path.stat().st_size)
        print(f"{len(files)} files, {sum(file.stat().st_size for file in files):,} bytes", flush=True)
        for number in range(args.flips):
            file, bit = draw(files, number, rng)
            flip(file, bit)
            try:
                restored, said = restore(directory, state)
                if equal(restored, older) and len(said) == 1 and f"checkpoint {SAVED[-1]} is damaged" in said[0]:
                    result, told = "found", said[0].partition("is damaged ")[2].partition("; skipped")[0]
                elif equal(restored, newer) and not said:
                    result, told = "changes nothing", "what is restored is the same"
                else:
                    result, told = "WRONG", f"restored step {restored.step}, said {said}"
            except Exception as error:
                result, told = "WRONG", repr(error)
            flip(file, bit)
            results[result] += 1
            where = f"{file.relative_to(place)}, bit {bit % 8} of byte {bit // 8}"
            print(f"flip {number + 1}/{args.flips}: {where}: {result}: {told}", flush=True)
        intact = equal(restore(directory, state)[0], newer)
    print(
        f"{args.flips} flips: {results['found']} found and named, the checkpoint before restored; "
        f"{results['changes nothing']} change nothing that is restored; {results['WRONG']} neither"
    )
    return 0 if intact and not results["WRONG"] else 1


if __name__ == "__main__":
    sys.exit(main())
