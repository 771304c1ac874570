"""MoMa's presets (arXiv 2407.21770): the published totals, sizes and training, and that each resolves."""

import pytest

from mot_jax.config import expand, group_names, pools, resolve
from mot_jax.config.experts import ExpertChoice, FeedForward
from mot_jax.gin_config import configs_directory, load_run
from mot_jax.nn import count
from mot_jax.training import flops
from mot_jax.training.optimizer import make_schedule

# Millions: the size's name; stored with 8 experts; stored with depth and 8 experts, to the digits given.
SIZES = {"90m": (90, "210", "317"), "435m": (435, "1.85e3", "3.0e3"), "1.4b": (1400, "7.1e3", "11.9e3")}
VARIANTS = {
    "dense": {"all": (FeedForward, 1)},
    "moe8": {"all": (ExpertChoice, 8)},
    "1t1i": {"text": (FeedForward, 1), "image": (FeedForward, 1)},
    "4t4i": {"text": (ExpertChoice, 4), "image": (ExpertChoice, 4)},
    "6t2i": {"text": (ExpertChoice, 6), "image": (ExpertChoice, 2)},
    "mod": {"all": (FeedForward, 1)},
    "mode8": {"all": (ExpertChoice, 8)},
    "mod_4t4i": {"text": (ExpertChoice, 4), "image": (ExpertChoice, 4)},
}
PRESETS = sorted(path.stem for path in configs_directory().glob("presets/moma_*.gin"))


def load(size, variant):
    """Resolved for data of the preset's own modalities and vocabulary."""
    model = load_run([f"moma_{size}_{variant}"])[0].model
    return resolve(model, ("text", "image"), 65_536)


def agrees(parameters, published):
    """Equal when rounded to the digits that were published; norms and routers are less than half of the last one."""
    digits = len(published.partition("e")[0].replace(".", ""))
    return float(f"{parameters / 1e6:.{digits - 1}e}") == float(published)


def test_every_size_has_every_variant():
    expected = {f"moma_{size}_{variant}" for size in SIZES for variant in VARIANTS if variant != "6t2i"}
    assert {*PRESETS} == expected | {"moma_1.4b_6t2i"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_what_its_name_says(name):
    _, size, variant = name.split("_", 2)
    run, _ = load_run([name])
    model = load(size, variant)
    assert (model.norm_order, model.selection_groups, run.data.sequence_length) == ("post", 1, 4096)
    rate = make_schedule(run.optimizer, steps=100_000)
    assert [float(rate(update)) for update in (0, 3999, 99_999)] == pytest.approx([1e-4 / 4000, 1e-4, 1e-6])
    for index, block in enumerate(expand(model)):
        found = {pool.name: (type(pool.kind), pool.kind.stored) for pool in pools(model, block)}
        assert found == VARIANTS[variant]
        skipped = variant.startswith("mod") and index % 2 == 0
        assert (block.depth.capacity if block.depth else None) == (0.25 if skipped else None)
        assert {*block.untied} <= {"feed_forward"}
    assert group_names(model) == ("text", "image")


@pytest.mark.parametrize("size", SIZES)
def test_stored_parameters_are_the_published_totals(size):
    _, experts, depth_experts = SIZES[size]
    for variant in ("moe8", "4t4i"):
        assert agrees(count.stored(load(size, variant)), experts), variant
    for variant in ("mode8", "mod_4t4i"):
        assert agrees(count.stored(load(size, variant)), depth_experts), variant
    # A second feed-forward a layer is a seventh of what seven more are.
    dense, pair = (count.stored(load(size, variant)) for variant in ("dense", "1t1i"))
    model = load(size, "dense")
    routers = model.num_layers * model.dim * 8
    assert 7 * (pair - dense) == count.stored(load(size, "moe8")) - routers - dense


def test_pools_of_two_sizes_store_as_much_as_two_of_one():
    assert count.stored(load("1.4b", "6t2i")) == count.stored(load("1.4b", "4t4i"))
    assert count.activated(load("1.4b", "6t2i")) == count.activated(load("1.4b", "4t4i"))


@pytest.mark.parametrize("size", SIZES)
def test_a_token_meets_the_parameters_that_name_the_size(size):
    dense = load(size, "dense")
    # The names round down: 92.3, 436 and 1476 million.
    assert 1 <= count.activated(dense) / (SIZES[size][0] * 1e6) < 1.06
    assert count.activated(load(size, "1t1i")) == count.activated(dense)
    for variant in ("moe8", "4t4i"):
        assert count.activated(load(size, variant)) == count.activated(dense) + dense.num_layers * dense.dim * 8


@pytest.mark.parametrize("size", SIZES)
def test_all_variants_of_a_size_cost_as_much(size):
    """The paper compares at equal FLOPs: those with depth have more layers, and are wider at 1.4B."""
    dense = flops.forward_flops_per_token(load(size, "dense"), 4096)
    for variant in VARIANTS.keys() - {"dense", "6t2i"}:
        cost = flops.forward_flops_per_token(load(size, variant), 4096)
        assert cost == pytest.approx(dense, rel=0.03 if variant.startswith("mod") else 0.001), variant
