"""Parameters by part and owner: every one once, and what a token of a group meets."""

import pytest

from mot_jax.config import Block, FrozenMapping
from mot_jax.config.experts import Depth, ExpertChoice, TokenChoice
from mot_jax.config.memory import Memory
from mot_jax.nn import count
from tests.batches import ALL, small_model

EVERYTHING = {
    "untied": ALL,
    "feed_forward": FrozenMapping(text=ExpertChoice(experts=4), image=TokenChoice(experts=2)),
    "memory": Memory(layers=(1,), num_keys=8, modalities=("image",)),
    "auxiliary_routers": True,
    "plan": ((1, (Block(depth=Depth()), Block())),),
}
CASES = {
    "dense": {},
    "mot": {"untied": ALL},
    "shared experts": {"feed_forward": TokenChoice(experts=4)},
    "shared groups": {"untied": ("feed_forward",), "groups": FrozenMapping(speech="text")},
    "by hash": {"untied": ("feed_forward",), "owner": "hash"},
    "everything": EVERYTHING,
}


def totals(by_part) -> dict:
    return {name: sum(parts.values()) for name, parts in by_part.items()}


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_is_counted_once(case):
    model = small_model(**CASES[case])
    assert sum(totals(count.stored_by_part(model)).values()) == count.stored(model)


def test_a_dense_model_owns_nothing_by_modality():
    model = small_model()
    owned = totals(count.stored_by_part(model))
    assert owned.pop("shared") == count.stored(model) and not any(owned.values())
    assert set(totals(count.activated_by_part(model)).values()) == {count.stored(model)}


def test_a_token_of_a_mot_meets_what_is_shared_and_its_own():
    model = small_model(untied=ALL)
    stored, met = totals(count.stored_by_part(model)), totals(count.activated_by_part(model))
    assert met == {group: stored[group] + stored["shared"] for group in met}
    assert set(met.values()) == {count.stored(small_model())}


def test_what_a_token_meets_is_its_own_modalitys(rng):
    model = small_model(**EVERYTHING)
    stored, met = count.stored_by_part(model), count.activated_by_part(model)
    expert = 3 * model.dim * model.ffn_dim
    # Layer 1 is a memory for images: experts of text in both layers, of images in layer 0 alone.
    assert {group: stored[group]["feed_forward"] // expert for group in met} == {"text": 8, "image": 2, "speech": 2}
    router = {group: met[group]["feed_forward"] % expert for group in met}
    assert {group: met[group]["feed_forward"] // expert for group in met} == {"text": 2, "image": 2, "speech": 2}
    assert router["text"] > router["image"] > 0  # auxiliary routers are those of expert choice
    read = model.memory.reads * model.dim
    assert met["image"]["memory"] == stored["image"]["memory"] + read
    assert met["text"]["memory"] == 0 and stored["shared"]["memory"] == model.memory.num_values * model.dim
