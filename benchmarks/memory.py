"""Memory layers against what they stand in for: `python benchmarks/memory.py [--json FILE]`.

Three tables in one run, arms taking turns: looking up (top-k of all keys, weighted sum of values) against einsum,
`lax.top_k`, take and einsum; a memory layer against the feed-forward whose place it takes; and the training step of the
facts configs against the dense one of equal FLOPs, tables updated whole and by the rows that were read.
"""

import argparse
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import report
from product_key import naive as naive_topk
from step_time import packed_batch

from kernels_pallas.embedding_bag import embedding_bag
from kernels_pallas.product_key import product_key_topk
from mot_jax.config import Model, Parallel, Run, resolve
from mot_jax.gin_config import load_run
from mot_jax.nn import transformer
from mot_jax.nn.context import Context
from mot_jax.nn.rows import make_rows
from mot_jax.nn.values import recall_from
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.host_memory import keep_freed_pages
from mot_jax.training.optimizer import make_optimizer
from mot_jax.training.state import init_state
from mot_jax.training.step import make_train_step
from mot_jax.vocabulary import build_vocabulary

TOKENS, HEADS, NUM_KEYS, DEPTH, TOP_K, WIDTH = 2048, 4, 128, 64, 32, 256
CONFIGS = {"dense": "facts_dense", "memory": "facts_memory", "experts": "facts_moe"}


def naive(queries, sub_keys, values):
    """As one would write it: every pair of halves sorted, every row gathered."""
    scores, rows = naive_topk(queries, sub_keys, TOP_K)
    weights = jax.nn.softmax(scores, axis=-1).reshape(TOKENS, -1)
    return jnp.einsum("tk,tkd->td", weights, jnp.take(values, rows.reshape(TOKENS, -1), axis=0))


def looked_up(queries, sub_keys, values):
    scores, rows = product_key_topk(queries, sub_keys, TOP_K)
    weights = jax.nn.softmax(scores, axis=-1)
    return embedding_bag(values, rows.reshape(TOKENS, -1), weights.reshape(TOKENS, -1))


def lookup(repeats: int) -> list[dict]:
    rng = np.random.default_rng(0)
    shapes = (TOKENS, HEADS, 2, DEPTH), (HEADS, 2, NUM_KEYS, DEPTH), (NUM_KEYS**2, WIDTH), (TOKENS, WIDTH)
    *arguments, dy = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    rows = []
    for what in ("forward", "with gradients"):
        arms = {}
        for name, function in (("naive", naive), ("mot_jax", looked_up)):
            run = function if what == "forward" else _with_gradients(function, dy)
            arms[name] = functools.partial(jax.jit(run), *arguments)
        seconds = report.alternate(arms, repeats)
        sizes = f"lookup {what} (T={TOKENS}, R={NUM_KEYS}, H={HEADS}, k={TOP_K}, D={WIDTH})"
        rows += [report.row(f"{name}: {sizes}", seconds[name], "naive", seconds["naive"]) for name in arms]
    return rows


def _with_gradients(function, dy):
    def run(*arguments):
        y, pull = jax.vjp(function, *arguments)
        return y, pull(dy)

    return run


def layer(repeats: int) -> list[dict]:
    """Forward and backward of the memory of facts_memory and of the feed-forward in facts_dense, on a step's tokens."""
    rng, arms = np.random.default_rng(0), {}
    for name in ("dense", "memory"):
        run, model = _run(CONFIGS[name])
        params = transformer.init(model, jax.random.key(0))
        tokens = run.data.global_batch_size * run.data.sequence_length
        x = jnp.asarray(rng.normal(size=(tokens, model.dim)), jnp.float32)
        zeros = jnp.zeros((1, tokens), jnp.int32)
        rows = make_rows(zeros, zeros, zeros + 1, (jnp.zeros((1, tokens, 1)),) * 2, None)

        def loss(params, x, model=model, rows=rows, memory=name == "memory"):
            part = transformer.merge(model, params).layers["1"]
            if not memory:
                return jnp.sum(part.feed_forward(x, rows) ** 2)
            context = Context(None, recall_from(model, params["values"]), 1, 1, 1, False, None)
            return jnp.sum(part.memory(x, rows, context)[0] ** 2)

        arms[name] = functools.partial(jax.jit(jax.grad(loss, argnums=(0, 1))), params, x)
    seconds = report.alternate(arms, repeats)
    return [
        report.row(f"{name}: the layer, forward and backward", seconds[name], "dense", seconds["dense"])
        for name in arms
    ]


def step(repeats: int) -> list[dict]:
    calls = {}
    for name, update in (("dense", None), ("memory", "dense"), ("memory", "touched"), ("experts", None)):
        run, model = _run(CONFIGS[name])
        if update:
            own = dataclasses.replace(run.optimizer.values, update=update)
            run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, values=own))
        vocabulary = build_vocabulary(1024, [])
        mesh = make_mesh(Parallel(), jax.devices()[:1])
        tx, _ = make_optimizer(run.optimizer, run.train.steps)
        batch = packed_batch(vocabulary, run.data.global_batch_size, run.data.sequence_length, (1.0,))
        compiled, states = make_train_step(run, vocabulary, mesh, tx), [init_state(model, tx, mesh, 0)]

        def call(compiled=compiled, states=states, batch=batch):
            states[0], metrics = compiled(states[0], batch)
            return metrics

        calls[f"{name}, {update} update" if update else name] = call
    seconds = report.alternate(calls, repeats)
    return [report.row(f"{name}: facts configs, step", seconds[name], "dense", seconds["dense"]) for name in calls]


def _run(config: str) -> tuple[Run, Model]:
    run, _ = load_run([config])
    model = resolve(run.model, ("text",), 1027)
    return dataclasses.replace(run, model=model), model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    keep_freed_pages()  # as train.py does
    rows = lookup(args.repeats) + layer(args.repeats) + step(args.repeats)
    report.show("memory layers", rows, args.json)


if __name__ == "__main__":
    main()
