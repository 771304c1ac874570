"""Memory layers against their definition in float64: every key scored, the best taken, their values summed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax import config
from mot_jax.config.memory import Memory
from mot_jax.evaluation.usage import memory_usage
from mot_jax.nn import transformer
from mot_jax.nn.context import Context
from mot_jax.nn.rows import enter, leave, make_rows
from mot_jax.nn.values import recall_from
from mot_jax.parallel.mesh import make_mesh
from tests.batches import ALL, random_batch, small_model, small_run
from tests.generation.models import random_params

MEMORY = Memory(layers=(0,), num_keys=6, heads=2, top_k=4, key_dim=12)
CASES = {
    "Memory+": {},
    "plain": {"memory": dataclasses.replace(MEMORY, gated=False, qk_norm=False)},
    "wider values": {"memory": dataclasses.replace(MEMORY, value_dim=40)},
    "more than the sub-keys": {"memory": dataclasses.replace(MEMORY, top_k=20)},
    "MoT": {"untied": ALL},
    "groups without order": {"untied": ("feed_forward",), "norm_order": "pre"},
    "one modality's": {
        "untied": ("feed_forward",),
        "memory": dataclasses.replace(MEMORY, modalities=("image",)),
    },
}


def rms(x, gain, epsilon):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * gain


def silu(x):
    return x / (1 + np.exp(-x))


def naive(model, layer, table, x, group):
    """What one token x [D] of a group gets, and {row: weight} of what it read."""
    memory, p = model.memory, layer["memory"]
    own = "feed_forward" in model.untied and memory.modalities is None
    at = (lambda leaf: leaf[group]) if own else (lambda leaf: leaf)
    q = (x @ at(p["query"])).reshape(memory.heads, 2, -1)
    keys = at(p["keys"])
    if memory.qk_norm:
        q = rms(q, at(p["query_norm"]["gain"]), model.norm_epsilon)
        keys = rms(keys, at(p["key_norm"]["gain"]), model.norm_epsilon) * q.shape[-1] ** -0.5
    y, read = np.zeros(table[0].size), {}
    for head in range(memory.heads):
        halves = [keys[head, half] @ q[head, half] for half in (0, 1)]
        scores = (halves[0][:, None] + halves[1]).reshape(-1)
        best = np.argsort(-scores)[: memory.top_k]
        weights = np.exp(scores[best] - scores[best].max())
        for row, weight in zip(best, weights / weights.sum(), strict=True):
            y += weight * table[row].reshape(-1)
            read[row] = read.get(row, 0) + weight
    if memory.gated:
        y = (y * silu(x @ at(p["gate"]))) @ at(p["down"])
    return y, read


def layer_alone(model, params, x, groups):
    """The memory of layer 0 on tokens x [T, D], in sequence order: output [T, D], rows and weights [T, K]."""

    def run(params, x):
        module = transformer.merge(model, params)
        ids = jnp.asarray(groups[None], jnp.int32)
        ordered = "feed_forward" in model.untied
        rope = (jnp.zeros((1, len(groups), 2)),) * 2
        rows = make_rows(ids * 0, ids, jnp.ones_like(ids), rope, 3 if ordered else None)
        recall = recall_from(model, params["values"])
        context = Context(lambda *a: None, recall, 0, 0, 1, True, None)
        y, report = module.layers["0"].memory(enter(rows, x[None]), rows, context)
        return leave(rows, y)[0], tuple(leave(rows, read)[0] for read in report.reads)

    return jax.jit(run)(params, x)


@pytest.mark.parametrize("case", CASES)
def test_a_memory_is_what_its_definition_says(case, rng):
    model = small_model(**{"memory": MEMORY, "num_layers": 1, "dtype": "float32", **CASES[case]})
    params = random_params(model)
    x = rng.standard_normal((37, model.dim)).astype(np.float32)
    groups = rng.permutation(np.arange(37) % 3) if model.untied else np.zeros(37, int)
    y, (rows, weights) = layer_alone(model, params, x, groups)
    exact = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    served = range(3)
    if model.memory.modalities:
        served = [config.group_names(model).index(name) for name in model.memory.modalities]
    for token, group in enumerate(groups):
        if group not in served:
            assert not np.any(np.asarray(y)[token]) and np.all(np.asarray(rows)[token] == model.memory.num_values)
            continue
        expected, read = naive(model, exact["layers"]["0"], exact["values"]["shared"], x[token].astype(float), group)
        np.testing.assert_allclose(np.asarray(y)[token], expected, atol=2e-5 * np.abs(expected).max() + 1e-6)
        found = np.zeros(model.memory.num_values)
        np.add.at(found, np.asarray(rows)[token], np.asarray(weights)[token])
        np.testing.assert_allclose(found, [read.get(row, 0) for row in range(len(found))], atol=1e-5)


def test_scan_and_remat_change_nothing(rng):
    batch = random_batch(rng, 2, 16)
    weights = rng.normal(size=(2, 16, 32)).astype(np.float32)  # not squares: what a norm gives has a constant square
    settings = {"untied": ALL, "num_layers": 4, "memory": dataclasses.replace(MEMORY, layers=(1, 2))}

    def run(model):
        params = transformer.init(model, jax.random.key(0))
        return jax.jit(jax.value_and_grad(lambda p: (transformer.apply(model, p, batch)[0] * weights).sum()))(params)

    plain = run(small_model(**settings))
    for fields in ({"scan_layers": True}, {"remat": "full"}, {"scan_layers": True, "remat": "dots"}):
        changed = run(small_model(**settings, **fields))
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(changed), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.abs(a).max(), err_msg=str(fields))


@pytest.mark.parametrize(("shared", "names"), [(True, {"shared"}), (False, {"0", "1"})])
def test_a_table_is_there_once_for_all_layers_or_once_a_layer(shared, names):
    memory = dataclasses.replace(MEMORY, layers=(0, 1), shared=shared, value_dim=256, dtype="bfloat16")
    tables = transformer.abstract(small_model(memory=memory))["values"]
    assert {*tables} == names
    assert {(table.shape, str(table.dtype)) for table in tables.values()} == {((36, 2, 128), "bfloat16")}


def test_usage_is_that_of_the_weights_the_tokens_gave(rng):
    model = small_model(memory=dataclasses.replace(MEMORY, layers=(0, 1)), dtype="float32")
    run, params = small_run(model, 4, 24), random_params(model)
    batches = [random_batch(rng, 4, 24) for _ in range(2)]
    mesh = make_mesh(config.Parallel(), jax.devices()[:1])
    given = {layer: np.zeros(model.memory.num_values) for layer in (0, 1)}
    for batch in batches:
        for layer, report in transformer.apply(model, params, batch)[1].items():
            rows, weights = map(np.asarray, report.reads)
            np.add.at(given[layer], rows[rows < len(given[layer])], weights[rows < len(given[layer])])
        assert (np.sort(rows[np.asarray(batch.segment_ids).reshape(-1) == 0], None) == model.memory.num_values).all()
    for layer, usage in memory_usage(run, params, batches, mesh).items():
        share = given[layer] / given[layer].sum()
        tokens = sum((batch.segment_ids > 0).sum() for batch in batches)
        assert given[layer].sum() == pytest.approx(tokens * model.memory.heads, rel=1e-4)
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        assert usage.used == pytest.approx((share > 0).mean(), abs=1e-6)
        assert usage.entropy == pytest.approx(entropy, rel=1e-4)
        assert usage.kl_to_uniform == pytest.approx(np.log(len(share)) - entropy, abs=1e-3)
