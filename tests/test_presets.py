"""Presets build abstractly, with the published parameter counts."""

import pytest

from mot_jax.config import check_model
from mot_jax.gin_config import configs_directory, load_run
from mot_jax.nn import count

# arXiv 2411.04996: activated millions, stored millions with 2 and with 3 modalities.
CHAMELEON = {
    "37m": (36.96, 40, 44),
    "94m": (94.4, 122, 149),
    "443m": (442.5, 751, 1059),
    "880m": (880.8, 1560, 2240),
    "1.5b": (1501.6, 2735, 3968),
    "7b": (7012.9, 13489, 19965),
}


def agrees(parameters, published):
    """Equal when rounded to the digits that were published, which count no norm gains."""
    return round(parameters / 1e6, len(str(published).partition(".")[2])) == published


def gains(model, groups):
    """Two norms and QK-norm in every layer, and the final norm."""
    return groups * (model.num_layers * (2 * model.dim + 2 * (model.dim // model.num_heads)) + model.dim)


@pytest.mark.parametrize("size", CHAMELEON)
def test_chameleon_sizes(size):
    activated, *stored = CHAMELEON[size]
    dense = load_run([f"chameleon_{size}_dense"])[0].model
    assert agrees(count.stored(dense) - gains(dense, 1), activated)
    assert count.activated(dense) == count.stored(dense)
    for modalities, published in zip((2, 3), stored, strict=True):
        model = load_run([f"chameleon_{size}_mot_{modalities}"])[0].model
        assert len(model.modalities) == modalities
        assert count.activated(model) == count.stored(dense)
        assert agrees(count.stored(model) - gains(model, modalities), published)


@pytest.mark.parametrize(("name", "parameters"), [("qwen3_0.6b", 596_049_920), ("llama_3.2_1b", 1_235_814_400)])
def test_pretrained_shapes(name, parameters):
    model = load_run([name])[0].model
    assert count.stored(model) == count.activated(model) == parameters


def test_every_shipped_config_loads():
    files = [path for path in configs_directory().rglob("*.gin") if not path.name.startswith("_")]
    assert len(files) >= 22
    for path in files:
        model = load_run([str(path)])[0].model
        if path.parent.name == "presets":
            check_model(model)
