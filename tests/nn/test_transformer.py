"""The forward pass against a float64 NumPy transformer written token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax import config
from mot_jax.nn import transformer
from tests.batches import ALL, VOCABULARY, random_batch, small_model


def reference_hidden(model, params, batch):
    """float64, one document at a time, one token at a time through its own group's weights."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    head_dim = config.heads(model)[2]
    group_of = config.group_of_modality(model)

    def own(leaf, untied, group):
        return leaf[group] if untied else leaf

    def norm(x, p, untied, group, kind):
        gain = own(p["gain"], untied, group)
        if kind == "layer":
            x = x - x.mean(-1, keepdims=True)
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + model.norm_epsilon) * gain + own(
                p["bias"], untied, group
            )
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + model.norm_epsilon) * gain

    def rotate(x, position):
        rates = model.rope_theta ** -(np.arange(head_dim // 2) * 2 / head_dim)
        z = (x[..., : head_dim // 2] + 1j * x[..., head_dim // 2 :]) * np.exp(1j * position * rates)
        return np.concatenate([z.real, z.imag], -1)

    hidden = np.zeros((*batch.tokens.shape, model.dim))
    for row in range(batch.tokens.shape[0]):
        for segment in set(batch.segment_ids[row]) - {0}:
            where = np.flatnonzero(batch.segment_ids[row] == segment)
            groups = [group_of[m] for m in batch.modality_ids[row, where]]
            xs = [params["embedding"]["table"][t] for t in batch.tokens[row, where]]
            for index, block in enumerate(config.expand(model)):
                p = params["layers"][str(index)]
                a, f, n = ("attention" in block.untied, "feed_forward" in block.untied, "norm" in block.untied)
                ks, vs, new = [], [], []
                for i, (x, g) in enumerate(zip(xs, groups, strict=True)):
                    h = norm(x, p["attention_norm"], n, g, model.norm) if block.norm_order == "pre" else x
                    y = np.einsum("d,dkph->kph", h, own(p["attention"]["qkv"], a, g))
                    if model.qkv_bias:
                        y = y + own(p["attention"]["bias"], a, g)
                    q, k, v = y[:, :-2], y[:, -2], y[:, -1]
                    if model.qk_norm != "none":
                        q = norm(q, p["attention"]["query_norm"], a, g, model.qk_norm)
                        k = norm(k, p["attention"]["key_norm"], a, g, model.qk_norm)
                    position = batch.positions[row, where[i], 0]
                    ks.append(rotate(k, position))
                    vs.append(v)
                    scores = np.einsum("kqh,tkh->kqt", rotate(q, position), np.array(ks)) / np.sqrt(head_dim)
                    weights = np.exp(scores - scores.max(-1, keepdims=True))
                    weights /= weights.sum(-1, keepdims=True)
                    o = np.einsum("kqt,tkh->kqh", weights, np.array(vs))
                    o = np.einsum("kqh,kqhd->d", o, own(p["attention"]["output"], a, g))
                    new.append(
                        x + (norm(o, p["attention_norm"], n, g, model.norm) if block.norm_order == "post" else o)
                    )
                for i, (x, g) in enumerate(zip(new, groups, strict=True)):
                    h = norm(x, p["feed_forward_norm"], n, g, model.norm) if block.norm_order == "pre" else x
                    gate = h @ own(p["feed_forward"]["gate"], f, g)
                    y = gate / (1 + np.exp(-gate)) * (h @ own(p["feed_forward"]["up"], f, g))
                    y = y @ own(p["feed_forward"]["down"], f, g)
                    xs[i] = x + (norm(y, p["feed_forward_norm"], n, g, model.norm) if block.norm_order == "post" else y)
            for place, x, g in zip(where, xs, groups, strict=True):
                hidden[row, place] = norm(x, params["final_norm"], "norm" in model.untied, g, model.norm)
    return hidden


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"untied": ALL},
        {"untied": ("feed_forward",), "norm_order": "pre", "num_kv_heads": 2, "tied_head": True},
        {"untied": ("attention", "norm"), "norm": "layer", "qk_norm": "layer", "qkv_bias": True, "head_dim": 6},
        {"untied": ALL, "groups": config.FrozenMapping(speech="text"), "qk_norm": "none"},
        {
            "untied": ALL,
            "plan": ((2, (config.Block(untied=()), config.Block(ffn_dim=16, norm_order="pre"))),),
            "num_kv_heads": 1,
        },
    ],
    ids=["dense", "mot", "gqa-pre", "layer-norm", "shared-group", "plan"],
)
def test_forward_equals_the_token_by_token_reference(fields, rng):
    model = small_model(**fields)
    params = transformer.init(model, jax.random.key(int(rng.integers(1 << 30))))
    params = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)
    batch = random_batch(rng, 2, 24)
    hidden, _ = jax.jit(lambda p, b: transformer.apply(model, p, b))(params, batch)
    expected = reference_hidden(model, params, batch)
    real = batch.segment_ids > 0
    error = np.linalg.norm((np.asarray(hidden) - expected)[real]) / np.linalg.norm(expected[real])
    assert error < 1e-5


def test_scan_and_remat_change_nothing(rng):
    batch = random_batch(rng, 2, 16)
    weights = rng.normal(size=(2, 16, 32)).astype(np.float32)  # not squares: what a norm gives has a constant square

    def run(model):
        params = transformer.init(model, jax.random.key(0))
        return jax.jit(jax.value_and_grad(lambda p: (transformer.apply(model, p, batch)[0] * weights).sum()))(params)

    plain = run(small_model(untied=ALL))
    for fields in ({"scan_layers": True}, {"remat": "full"}, {"scan_layers": True, "remat": "dots"}):
        changed = run(small_model(untied=ALL, **fields))
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(changed), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5 * np.abs(a).max(), err_msg=str(fields))


def test_an_absent_modality_has_zero_gradients_not_missing_ones(rng):
    model = small_model(untied=ALL, num_layers=1)
    params = transformer.init(model, jax.random.key(0))
    batch = random_batch(rng, 2, 16)
    text_only = np.zeros_like(batch.modality_ids)

    def loss(params):
        hidden = transformer.forward(
            model,
            params,
            *map(jnp.asarray, (np.minimum(batch.tokens, 89), text_only, batch.positions, batch.segment_ids)),
            lambda layer, q, k, v, segments: v,
        )
        return (hidden**2).sum()

    grads = jax.jit(jax.grad(loss))(params)
    gate = np.asarray(grads["layers"]["0"]["feed_forward"]["gate"])
    assert np.abs(gate[0]).max() > 0
    assert (gate[1:] == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_a_wrong_parameter_tree_is_refused_by_name():
    model = small_model()
    params = transformer.init(model, jax.random.key(0))
    tokens = jnp.zeros((1, 4), jnp.int32)

    def run(params):
        return transformer.forward(
            model, params, tokens, tokens, tokens[..., None], tokens + 1, lambda layer, q, k, v, segments: q
        )

    wrong = jax.tree.map(lambda x: x, params)
    wrong["layers"]["1"]["feed_forward"]["gate"] = np.zeros((32, 47), np.float32)
    with pytest.raises(ValueError, match=r"layers/1/feed_forward/gate has shape \(32, 47\), expected \(32, 48\)"):
        run(wrong)
    del wrong["layers"]["1"]["feed_forward"]["gate"]
    with pytest.raises(ValueError, match="layers/1/feed_forward/gate is missing"):
        run(wrong)
    params["layers"]["0"]["extra"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="layers/0/extra is not part"):
        run(params)


def test_untying_adds_only_group_axes():
    dense, untied = transformer.abstract(small_model()), transformer.abstract(small_model(untied=ALL))
    shared = {"embedding", "head"}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(dense), jax.tree.leaves(untied), strict=True):
        expected = a.shape if path[0].key in shared else (len(VOCABULARY.names), *a.shape)
        assert b.shape == expected
