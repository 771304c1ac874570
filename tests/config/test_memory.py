"""Memory layers in configs: the published sizes, what is counted, and what is refused in one line."""

import dataclasses

import jax
import pytest

from mot_jax.config import Optimizer, Parallel, ValuesOptimizer, expand, has_memory, resolve
from mot_jax.config.memory import Memory
from mot_jax.errors import ConfigError
from mot_jax.gin_config import load_run
from mot_jax.nn import count
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.flops import forward_flops_per_token
from mot_jax.training.table_memory import check_table_fits
from tests.batches import VOCABULARY, small_model, small_run

# Billions of parameters (arXiv 2412.09764, table 1), sub-keys of a half
PRESETS = {"1m": (3.37, 2, 1024), "4m": (9.823, 3, 2048), "16m": (35.618, 3, 4096), "64m": (138.748, 3, 8192)}
MEMORY = ["Model.memory = @Memory()", "Memory.layers = (1,)"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_store_what_was_published(name):
    published, digits, num_keys = PRESETS[name]
    run, _ = load_run([f"memory_1.3b_{name}"])
    model = resolve(run.model, ("text",), 32_000)
    assert round(count.stored(model) / 1e9, digits) == published
    assert model.memory.num_keys == num_keys
    assert [layer for layer, block in enumerate(expand(model)) if has_memory(block)] == [3, 11, 19]
    assert run.optimizer.values == ValuesOptimizer(learning_rate=1e-3, weight_decay=0.1)


def message(*bindings, modalities=VOCABULARY.names):
    with pytest.raises(ConfigError) as caught:
        run, _ = load_run(bindings=bindings)
        resolve(run.model, modalities, VOCABULARY.size)
    return str(caught.value)


@pytest.mark.parametrize(
    ("bindings", "expected"),
    [
        (["Memory.layers = ()"], "Memory.layers: expected the layers that have one, as in (3, 11, 19); got none"),
        (["Memory.layers = (1, 4)"], "Memory.layers: expected numbers from 0 to 3, got 4"),
        (["Memory.layers = (1, 1)"], "Memory.layers: (1, 1) names a layer twice"),
        (["Memory.heads = 0"], "Memory.heads: expected a number that is at least 1, got 0"),
        (
            ["Memory.num_keys = 5", "Memory.top_k = 26"],
            "Memory.top_k: 26 is more than the 25 keys of Memory.num_keys = 5",
        ),
        (
            ["Memory.num_keys = 50000"],
            "Memory.num_keys: 50000 sub-keys a half make more values than an int32 row can name; "
            "expected at most 46340",
        ),
        (["Memory.key_dim = 7"], "Memory.key_dim: 7 is not even; a key has two halves"),
        (["Memory.ffn_dim = 8"], "Memory.ffn_dim: a memory has none, got 8; its width is Memory.value_dim"),
        (
            ["Memory.gated = False", "Memory.value_dim = 64"],
            "Memory.value_dim: 64 differs from Model.dim = 128; expected Memory.gated = True, whose projection brings "
            "values back to the model's width",
        ),
        (
            ["Model.untied = ('feed_forward',)", "Memory.modalities = ('imag',)"],
            "Memory.modalities: no group 'imag'; did you mean 'image'?",
        ),
        (
            ["Memory.modalities = ('image',)"],
            'Memory.modalities: a memory of some modalities needs "feed_forward" in untied, got untied = () in layer 1',
        ),
        (
            ["Model.feed_forward = @Memory()"],
            "Model.feed_forward: got a Memory; expected it in Model.memory, with Memory.layers",
        ),
        (
            ["ValuesOptimizer.learning_rate = -1"],
            "ValuesOptimizer.learning_rate: expected a number that is at least 0, got -1.0",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(bindings, expected):
    assert message(*MEMORY, *bindings) == expected


def test_a_table_that_does_not_fit_says_how_many_devices_it_needs():
    model = small_model(memory=Memory(layers=(0,), num_keys=1024, value_dim=256))  # 1 GiB of float32
    run, mesh = small_run(model, 4, 16), make_mesh(Parallel(), jax.devices()[:1])
    check_table_fits(run, mesh, room=4 * 2**30)
    with pytest.raises(ConfigError) as caught:
        check_table_fits(run, mesh, room=3 * 2**30 // 2)
    assert str(caught.value) == (
        "Memory.num_keys: 1,048,576 values of 256 with gradients and moments take 4.0 GiB, so 4.0 GiB on each of 1 "
        "devices (Parallel.fsdp x tensor) of 1.5 GiB; expected at least 4 devices"
    )
    touched = dataclasses.replace(run, optimizer=Optimizer(values=ValuesOptimizer(update="touched")))
    check_table_fits(touched, mesh, room=3 * 2**30)  # no dense gradient
    check_table_fits(run, mesh)  # this machine has more


def test_a_table_is_counted_whole_as_stored_and_by_what_is_read_as_activated():
    memory = Memory(layers=(1,), num_keys=16, heads=2, top_k=4, key_dim=8)
    dense, model = small_model(), small_model(memory=memory)
    own = 32 * 2 * 8 + 2 * 2 * 16 * 4 + 2 * 4 + 2 * 32 * 32  # queries, keys, norms, gate and output
    feed_forward = 3 * 32 * 48
    assert count.stored(model) - count.stored(dense) == own - feed_forward + 256 * 32
    assert count.activated(model) - count.activated(dense) == own - feed_forward + 2 * 4 * 32
    products = 2 * 8 * 32 + 2 * 8 * 16 + 2 * 4 * 32 + 2 * 32 * 32  # queries, scores, what is read, gate and output
    got = forward_flops_per_token(model, 64) - forward_flops_per_token(dense, 64)
    assert got == 2 * (products - feed_forward)
