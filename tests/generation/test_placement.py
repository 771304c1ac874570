"""A model that no device holds whole generates what one device would, where it is."""

import jax
import numpy as np
import pytest

from mot_jax.config import Parallel, Sample, resolve, rules_with
from mot_jax.config.experts import TokenChoice
from mot_jax.config.memory import Memory
from mot_jax.config.model import Model
from mot_jax.documents import Span, to_tokens
from mot_jax.generation import placement
from mot_jax.generation.decode import generate_tokens
from mot_jax.parallel.mesh import make_mesh
from mot_jax.training.state import parameter_shardings
from mot_jax.vocabulary import build_vocabulary
from tests.generation.models import random_params

VOCABULARY = build_vocabulary(20, [("image", 9, 4)])
CHANGES = {"vocab": "data"}


def split(model, params, changes):
    mesh = make_mesh(Parallel(data=1, fsdp=2, expert=2, tensor=2))
    return jax.device_put(params, parameter_shardings(model, mesh, rules_with(changes)))


@pytest.fixture
def model():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    fields = {"dim": 32, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48, "dtype": "float32"}
    memory = Memory(layers=(0,), modalities=("image",), num_keys=8, heads=2, top_k=4, value_dim=256)
    fields |= {"memory": memory, "untied": ("feed_forward",), "feed_forward": TokenChoice(experts=4), "num_layers": 1}
    return resolve(Model(**fields), VOCABULARY.names, VOCABULARY.size)


def test_a_split_model_generates_what_one_device_would(model, monkeypatch):
    params = random_params(model)
    prompts = [to_tokens(VOCABULARY, [Span("text", np.array(codes, np.int32))], eos=False) for codes in ([], [4, 5, 6])]

    def generate(params):
        sample = Sample(temperature=1.5)
        return generate_tokens(model, params, VOCABULARY, prompts, to="image", sample=sample, key=jax.random.key(0))

    expected = generate(params)
    monkeypatch.setattr(placement, "SHARE", 0.0)
    np.testing.assert_array_equal(generate(split(model, params, CHANGES)), expected)


def test_a_placement_is_read_off_the_parameters(model):
    params = random_params(model)
    assert placement.placement_of(model, params) is None and placement.fits_one_device(params)
    found = placement.placement_of(model, split(model, params, CHANGES))
    used = ("embed", "kv_heads", "ffn", "vocab", "expert", "value_row", "value_column", "group")
    assert {axis: found.rules[axis] for axis in used} == {axis: rules_with(CHANGES)[axis] for axis in used}
