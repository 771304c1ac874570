"""Cached decoding equals the uncached forward, whatever the model and whatever the rows' lengths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mot_jax import config
from mot_jax.batch import Batch
from mot_jax.config import Block, FrozenMapping, Model, resolve
from mot_jax.config.experts import Depth, ExpertChoice, TokenChoice
from mot_jax.config.memory import Memory
from mot_jax.generation.cache import decode, prefill
from mot_jax.nn import transformer
from tests.generation.models import random_params

ALL = ("attention", "feed_forward", "norm")
MODELS = {
    "dense": {},
    "dense grouped-query pre-norm": {
        "num_kv_heads": 2,
        "head_dim": 12,
        "norm_order": "pre",
        "qk_norm": "none",
        "qkv_bias": True,
        "tied_head": True,
    },
    "MoT": {"untied": ALL},
    "MoT grouped-query pre-norm": {"untied": ALL, "num_kv_heads": 1, "norm_order": "pre", "norm": "layer"},
    "feed-forward of two groups, scanned": {
        "untied": ("feed_forward",),
        "groups": FrozenMapping(speech="text"),
        "scan_layers": True,
    },
}
DEEP = ((1, (Block(depth=Depth(capacity=0.5)), Block())),)
MODELS |= {
    "experts": {"untied": ("feed_forward",), "feed_forward": ExpertChoice(experts=3), "auxiliary_routers": True},
    "token choice": {"feed_forward": TokenChoice(experts=4, capacity=0.5)},
    "memory": {"memory": Memory(layers=(1,), num_keys=6, heads=2, top_k=4)},
    "memory in MoT": {"untied": ALL, "memory": Memory(layers=(0, 1), num_keys=6, heads=2, top_k=4)},
    "depth in MoT": {"untied": ALL, "plan": DEEP, "auxiliary_routers": True},
    "experts, a memory and depth in one layer": {
        "untied": ALL,
        "feed_forward": FrozenMapping(text=ExpertChoice(experts=3)),
        "memory": Memory(layers=(0, 1), num_keys=6, heads=2, top_k=4, modalities=("image",)),
        "plan": DEEP,
        "auxiliary_routers": True,
    },
}
LENGTHS = np.array([7, 1, 4, 0, 10])
STEPS = 5


def uncached(model, params, tokens, modality_ids, lengths):
    size = tokens.shape[1]
    segments = (jnp.arange(size) < lengths[:, None]).astype(jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(size)[None, :, None], (*tokens.shape, 1))
    zeros = jnp.zeros_like(tokens)
    batch = Batch(tokens, modality_ids, segments, zeros, positions, zeros, zeros.astype(jnp.float32))
    return transformer.apply(model, params, batch, causal=True)[0]


@pytest.mark.parametrize("name", MODELS)
def test_cached_equals_uncached(name):
    settings = {"dim": 32, "num_layers": 2, "num_heads": 4, "ffn_dim": 48, "dtype": "float32", **MODELS[name]}
    model = resolve(Model(**settings), ("text", "image", "speech"), 40)
    params = random_params(model)
    generator = np.random.default_rng(0)
    total = LENGTHS.max() + STEPS
    tokens = generator.integers(0, 40, (len(LENGTHS), total)).astype(jnp.int32)
    modality_ids = generator.integers(0, 3, tokens.shape).astype(jnp.int32)
    expected = np.asarray(jax.jit(uncached, static_argnums=0)(model, params, tokens, modality_ids, LENGTHS + STEPS))

    size = LENGTHS.max() + 2  # padding on every row
    prompts = np.where(np.arange(size) < LENGTHS[:, None], tokens[:, :size], 0)
    run_prefill = jax.jit(prefill, static_argnums=(0, 5))
    run_decode = jax.jit(decode, static_argnums=0)
    hidden, cache = run_prefill(model, params, prompts, modality_ids[:, :size], LENGTHS, int(total) + 3)
    rows = np.flatnonzero(LENGTHS)  # a row of length 0 is the batch's own padding
    steps = np.zeros(len(LENGTHS), np.int32)
    for turn in range(STEPS + 3):
        seen = LENGTHS + steps
        np.testing.assert_array_equal(cache.lengths, seen)
        np.testing.assert_allclose(np.asarray(hidden)[rows], expected[rows, seen[rows] - 1], atol=2e-5)
        active = (LENGTHS > 0) & (steps < STEPS) & (turn % 4 != np.arange(len(LENGTHS)) % 4)  # some rows wait
        column = np.minimum(seen, total - 1)[:, None]
        token = np.take_along_axis(tokens, column, 1)[:, 0]
        kind = np.take_along_axis(modality_ids, column, 1)[:, 0]
        before = hidden
        hidden, cache = run_decode(model, params, cache, token, kind, active)
        hidden = jnp.where(active[:, None], hidden, before)
        steps += active
    assert (steps[rows] > 3).all()
    skipping = [block.depth is not None for block in config.expand(model)]
    for skips, held in zip(skipping, cache.held, strict=True):  # a skipped token writes no key and no value
        assert np.all(held <= cache.lengths) and np.any(held < cache.lengths) == skips
