"""Names of machines."""

import pytest

from mot_jax.aot.topology import parse_target
from mot_jax.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "grid", "chips", "devices"),
    [
        ("v5e:16x16", "v5e:16x16", 256, 256),
        ("v5p:8x8x8", "v5p:8x8x8", 512, 512),
        ("tpu7x:4x4x4", "tpu7x:4x4x4", 64, 128),
        ("v5p-512", "v5p:4x8x8", 256, 256),  # TensorCores, two a chip
        ("v5litepod-16", "v5e:4x4", 16, 16),
        ("v6e-256", "v6e:16x16", 256, 256),
        ("h100", "h100", 1, 1),
    ],
)
def test_known_names(name, grid, chips, devices):
    target = parse_target(name)
    assert (target.grid, target.chips, target.devices) == (grid, chips, devices)
    assert f"{chips} chip" in target.description


def test_a_device_is_its_share_of_a_chip():
    chip, target = parse_target("tpu7x:2x2x1").chip, parse_target("tpu7x:2x2x1")
    assert (target.memory, target.flops, target.bandwidth) == (chip.memory / 2, chip.flops / 2, chip.bandwidth / 2)


@pytest.mark.parametrize(
    "name", ["v5p:8x8", "v5p-500", "v7:2x2", "", "h200", "v5e", "v6e:3x3", "tpu7x-64", "-4", ":2x2"]
)
def test_unknown_names_list_the_known(name):
    with pytest.raises(ConfigError, match=r"--aot: no topology .*known: v5e:1x1\|.*v5p:2x2x1.*h100") as caught:
        parse_target(name)
    assert "\n" not in str(caught.value)


def test_a_slip_is_answered_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean 'v5p:8x8x8'"):
        parse_target("v5p:8x8x9")
