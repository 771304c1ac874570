"""Bytes, axes and operations of small compiled programs, against what they were written to be."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from mot_jax.aot import hlo, work
from mot_jax.aot.collectives import axes_of, collectives, sent_bytes

SHAPE = {"data": 2, "fsdp": 2, "expert": 1, "tensor": 2}
TURNS = 3


@pytest.fixture(scope="module")
def program():
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    mesh = jax.make_mesh(tuple(SHAPE.values()), tuple(SHAPE), axis_types=(AxisType.Auto,) * 4)

    @jax.named_scope("projections")
    def turn(x, _):
        whole = jax.lax.all_gather(x, "fsdp", tiled=True)  # f32[16, 32]
        return jax.lax.psum_scatter(whole @ jnp.ones((32, 32)), "tensor", tiled=True), None  # f32[8, 32]

    def step(x):
        y, _ = jax.lax.scan(turn, x, length=TURNS)
        return jax.lax.psum(y, ("data", "fsdp"))

    spec = PartitionSpec(("data", "fsdp", "tensor"))
    step = jax.shard_map(step, mesh=mesh, in_specs=spec, out_specs=PartitionSpec("tensor"), check_vma=False)
    text = jax.jit(step).lower(jax.ShapeDtypeStruct((64, 32), jnp.float32)).compile().as_text()
    return hlo.parse(text)


def test_a_program_with_a_loop(program):
    found = {(each.operation, each.axes): (each.count, each.sent) for each in collectives(program, SHAPE)}
    gathered, mine = 16 * 32 * 4, 8 * 32 * 4
    assert found[("all-gather", ("fsdp",))] == (TURNS, TURNS * gathered / 2)
    assert found[("reduce-scatter", ("tensor",))] == (TURNS, TURNS * mine)
    assert found[("all-reduce", ("data", "fsdp"))] == (1, 2 * mine * 3 / 4)
    assert program.unknown_loops == 0


def test_products_are_counted_by_part_and_turn(program):
    assert work.flops(program)["projections"] == TURNS * 2 * 16 * 32 * 32


def test_what_a_collective_sends_at_least():
    assert sent_bytes("all-gather", 800, 8) == sent_bytes("all-to-all", 800, 8) == 700
    assert sent_bytes("reduce-scatter", 100, 8) == 700
    assert sent_bytes("all-reduce", 800, 8) == 1400
    assert sent_bytes("collective-permute", 800, 8) == 800


def test_axes_are_those_along_which_places_differ():
    assert axes_of([0, 1], SHAPE) == ("tensor",)
    assert axes_of([1, 3], SHAPE) == ("fsdp",)
    assert axes_of([0, 2, 4, 6], SHAPE) == ("data", "fsdp")
    assert axes_of([0, 3], SHAPE) == ("?",)


@pytest.mark.parametrize(
    "groups",
    [
        "[4,2]<=[2,2,2]T(0,2,1)",
        "mesh['data'=2,'fsdp'=2,'expert'=1,'tensor'=2] {'fsdp'}",
        "mesh['all'=8] {'all':(2)2}",
        "{{0,2},{1,3},{4,6},{5,7}}",
    ],
)
def test_groups_in_every_way_they_are_written(groups):
    line = f"  %x = f32[4]{{0}} all-reduce(%y), replica_groups={groups}, to_apply=%sum"
    text = f"ENTRY %main (y: f32[4]) -> f32[4] {{\n  %y = f32[4]{{0}} parameter(0)\n{line}\n}}\n"
    (found,) = collectives(hlo.parse(text), SHAPE)
    assert (found.axes, found.sent) == (("fsdp",), 16)


def test_only_the_first_stage_of_an_overlapped_collective_counts():
    stage = '  %g = f32[8]{0} all-gather(%p), replica_groups={{0,1}}, frontend_attributes={chain_id="0"}'
    begin = '  ROOT %c = f32[8]{0} custom-call(%g), custom_call_target="AsyncCollectiveStart"'
    start = f"%first (p: f32[4]) -> f32[8] {{\n{stage}\n{begin}\n}}\n"
    later = f"%second (p: f32[4]) -> f32[8] {{\n{stage}\n}}\n"
    calls = "".join(
        f"  %f{name} = f32[8]{{0}} fusion(%p), kind=kCustom, calls=%{name}\n" for name in ("first", "second")
    )
    entry = f"ENTRY %main (p: f32[4]) -> f32[8] {{\n  %p = f32[4]{{0}} parameter(0)\n{calls}}}\n"
    (found,) = collectives(hlo.parse(start + later + entry), SHAPE)
    assert (found.operation, found.count, found.sent) == ("all-gather", 1, 16)


@pytest.mark.parametrize(
    ("left", "right", "settings"),
    [
        # a batched product on a TPU
        ("f32[512,8,32]", "f32[512,8,32]", "window={size=8 stride=7 lhs_dilate=8}, dim_labels=b0f_o0i->0bf"),
        ("f32[8,512,32]", "f32[1,512,32]", "dim_labels=0bf_0oi->0bf"),
    ],
)
def test_products_that_are_written_as_convolutions(left, right, settings):
    lines = f"  %a = {left}{{2,1,0}} parameter(0)\n  %b = {right}{{2,1,0}} parameter(1)\n"
    out = f"  ROOT %c = f32[8,512,512]{{2,1,0}} convolution(%a, %b), {settings}\n"
    module = hlo.parse(f"ENTRY %main (a: {left}, b: {right}) -> f32[8,512,512] {{\n{lines}{out}}}\n")
    assert work.flops(module)["other"] == 2 * 8 * 512 * 512 * 32
