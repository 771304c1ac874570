"""Every architecture against dense on the default data's sizes: `python benchmarks/architectures.py [--json FILE]`.

The arms are those of configs/sweeps/architectures.toml, all of about a dense model's FLOPs a token; a row says how
many. Compared are the forward pass (held-out loss), the training step, optimizer included, and decoding: tokens a
second of 8 rows that write an image of 64 codes after prompts of 16 tokens, prefill too. All arms take turns in one
run, on the same batch.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import report
from step_time import packed_batch

from mot_jax.config import Parallel, Run, Sample, resolve
from mot_jax.experiments.read_sweep import read_sweep
from mot_jax.generation.decode import generate_tokens
from mot_jax.gin_config import load_run
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.flops import train_flops_per_token
from mot_jax.training.host_memory import keep_freed_pages
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import init_state
from mot_jax.training.step import make_loss_eval, make_train_step
from mot_jax.vocabulary import Vocabulary, build_vocabulary

SHARES = (0.5, 0.3, 0.2)  # of text, image and speech, as in the default data
ROWS, PROMPT, CODES = 8, 16, 64


def runs(vocabulary: Vocabulary) -> dict[str, Run]:
    """Each arm of the sweep, its model resolved."""
    sweep = read_sweep("architectures")
    found = {}
    for arm in sweep.arms:
        run, _ = load_run((*sweep.files, *arm.files), (*sweep.set, *arm.set))
        model = resolve(run.model, vocabulary.names, vocabulary.size)
        found[arm.name] = dataclasses.replace(run, model=model)
    return found


def calls(run: Run, vocabulary: Vocabulary) -> dict[str, object]:
    """What is compared -> a call that does it once."""
    mesh = make_mesh(Parallel(), jax.devices()[:1])
    tx, _ = make_optimizer(run.optimizer, run.train.steps)
    batch = packed_batch(vocabulary, run.data.global_batch_size, run.data.sequence_length, SHARES)
    evaluate, step = make_loss_eval(run, vocabulary, mesh), make_train_step(run, vocabulary, mesh, tx)
    states = [init_state(run.model, tx, mesh, 0)]
    params = jax.tree.map(jnp.copy, states[0].params)  # the step consumes its state
    words = np.random.default_rng(0).choice(vocabulary.code_tokens("text"), (ROWS, PROMPT - 1))
    prompts = [np.concatenate([[vocabulary.bos], row]).astype(np.int32) for row in words]

    def trained():
        states[0], metrics = step(states[0], batch)
        return metrics

    def decoded():
        return generate_tokens(
            run.model, params, vocabulary, prompts, to="image", sample=Sample(temperature=1.0), key=jax.random.key(0)
        )

    return {"forward": lambda: evaluate(params, batch), "training step": trained, "decoding": decoded}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="also write the rows here")
    parser.add_argument("--repeats", type=int, default=15, help="rounds of each comparison (default: %(default)s)")
    args = parser.parse_args()
    keep_freed_pages()  # as train.py does
    vocabulary = build_vocabulary(1024, [("image", 256, CODES), ("speech", 200, None)])
    arms = runs(vocabulary)
    compared = {arm: calls(run, vocabulary) for arm, run in arms.items()}
    per_token = {arm: train_flops_per_token(run.model, run.data.sequence_length) for arm, run in arms.items()}
    rows = [
        report.figure(
            f"{arm}: FLOPs a token", "counted", per_token[arm] / 1e6, "MFLOP", "dense", per_token[arm] / dense
        )
        for dense in (per_token["dense"],)
        for arm in arms
    ]
    for what in ("forward", "training step", "decoding"):
        print(f"{what}: {len(arms)} architectures", flush=True)
        seconds = report.alternate({arm: compared[arm][what] for arm in arms}, args.repeats)
        for arm in arms:
            if what == "decoding":
                rate = ROWS * CODES / float(np.median(seconds[arm]))
                ratio = float(np.median(np.asarray(seconds["dense"]) / np.asarray(seconds[arm])))
                rows.append(report.figure(f"{arm}: decoding", "rate", rate, "tokens/s", "dense", ratio))
            else:
                rows.append(report.row(f"{arm}: {what}", seconds[arm], "dense", seconds["dense"]))
    report.show("architectures, default config", rows, args.json)


if __name__ == "__main__":
    main()
