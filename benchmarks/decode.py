"""Generating 256 tokens with the KV cache against recomputing: `python benchmarks/decode.py [--json FILE]`.

The 94M preset (`--config`) with random weights, one row and eight. `recompute` is how one would write it without a
cache: for each token one compiled forward pass over prompt and 256 tokens, padded from the start, and the head on the
one position that matters; it is timed on one token a round, since each costs the same. The cache's time is of all
tokens, prefill, grammar and sampling included. The floor is the time in which this machine reads every weight that a
token meets once: their bytes over the rate at which it sums a large array, in the same round.
"""

import argparse
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import report
from bandwidth import memory_reader

from mot_jax.batch import Batch
from mot_jax.config import Model, Sample, resolve
from mot_jax.generation.decode import generate_tokens
from mot_jax.gin_config import load_run
from mot_jax.nn import count, transformer
from mot_jax.training.host_memory import keep_freed_pages
from mot_jax.vocabulary import Vocabulary, build_vocabulary

TOKENS = 256
SETTINGS = ((1, 16), (8, 16), (1, 1024))  # rows, prompt


def preset(name: str) -> tuple[Model, Vocabulary]:
    """The model with the vocabulary that fills its table: text, and images of 8,192 codes, 1,024 each."""
    run, _ = load_run([name])
    image = ("image", 8192, 1024)
    size = run.model.vocab_size
    vocabulary = build_vocabulary(2 * size - build_vocabulary(size, [image]).size, [image])
    return resolve(run.model, vocabulary.names, vocabulary.size), vocabulary


def read_bytes(model: Model) -> int:
    """Bytes of the float32 weights that a token meets; of the input table only its row is read."""
    by_group = count.activated_by_part(model).values()
    met = max(sum(parts.values()) - (0 if model.tied_head else parts["embedding"]) for parts in by_group)
    return 4 * met


def recompute(model: Model, params: dict, rows: int, length: int):
    """A call that finds one more token of every row."""
    plain = dataclasses.replace(model, remat="none")
    positions = np.broadcast_to(np.arange(length, dtype=np.int32)[None, :, None], (rows, length, 1))
    ones = np.ones((rows, length), np.int32)

    @jax.jit
    def one(params, tokens, place, key):
        batch = Batch(tokens, 0 * ones, ones, ones, positions, tokens, ones.astype(np.float32))
        hidden, _ = transformer.apply(plain, params, batch, causal=True)
        logits = transformer.logits(plain, params, hidden[:, place])
        token = jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)
        return tokens.at[:, place + 1].set(token)

    tokens = jnp.ones((rows, length), jnp.int32)
    return lambda: one(params, tokens, length // 2, jax.random.key(0))


def measure(name: str, model: Model, vocabulary: Vocabulary, rows: int, prompt: int, repeats: int) -> list[dict]:
    params = jax.jit(transformer.init, static_argnums=0)(model, jax.random.key(0))
    words = np.random.default_rng(0).choice(vocabulary.code_tokens("text"), (rows, prompt - 1))
    prompts = [np.concatenate([[vocabulary.bos], row]).astype(np.int32) for row in words]
    read, read_size = memory_reader()
    generated = []

    def cached():
        sample = Sample(temperature=1.0)
        found = generate_tokens(
            model, params, vocabulary, prompts, to="text", max_tokens=TOKENS, sample=sample, key=jax.random.key(0)
        )
        generated.append(max(map(len, found)))  # a row may end early; the loop runs until the last one does

    arms = {"cache": cached, "recompute": recompute(model, params, rows, prompt + TOKENS), "read": read}
    seconds = {arm: np.asarray(times) for arm, times in report.alternate(arms, repeats).items()}
    seconds["cache"] = seconds["cache"] / generated[-1]
    floor = read_bytes(model) / read_size * seconds["read"]
    where = f"{name}, {rows} {'row' if rows == 1 else 'rows'}, prompt {prompt}, {generated[-1]} tokens"

    def row(arm: str, times, against: str, ratio) -> dict:
        rate = rows / float(np.median(times))
        return report.figure(f"{arm}: {where}", "rate", rate, "tokens/s", against, float(np.median(ratio)))

    return [
        row("KV cache", seconds["cache"], "recompute", seconds["recompute"] / seconds["cache"]),
        row("KV cache", seconds["cache"], "floor", floor / seconds["cache"]),
        row("recompute", seconds["recompute"], "floor", floor / seconds["recompute"]),
        report.figure(f"floor: {where}", "memory", read_size / float(np.median(seconds["read"])) / 1e9, "GB/s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="chameleon_94m_mot_2", metavar="NAME", help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the rows here")
    args = parser.parse_args()
    keep_freed_pages()  # as train.py does
    model, vocabulary = preset(args.config)
    name = args.config.removeprefix("chameleon_")
    rows = []
    for number, setting in enumerate(SETTINGS, 1):
        print(f"{number}/{len(SETTINGS)}: {setting[0]} x {setting[1]} + {TOKENS} tokens", flush=True)
        rows += measure(name, model, vocabulary, *setting, args.repeats)
    report.show("decoding", rows, args.json)


if __name__ == "__main__":
    main()
