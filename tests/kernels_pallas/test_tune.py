"""The table of tuned blocks: what goes in, and that kernels take it."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels_pallas import tune
from kernels_pallas.grouped_matmul import align_rows, tpu_tiles, tpu_weights
from kernels_pallas.grouped_matmul.tpu_rows import product
from kernels_pallas.schedule import PEAKS, Schedule, _pallas_calls

V5E = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5E, 1)


def steps(function, shapes) -> float:
    traced = jax.make_jaxpr(lambda *a: function(*a))(*shapes)  # anew: a function's trace is cached
    ((count, *_),) = _pallas_calls(traced.jaxpr).values()
    return float(count)


@pytest.fixture
def on_v5e(monkeypatch):
    monkeypatch.setattr(pltpu, "get_tpu_info", lambda: V5E)


def test_only_blocks_better_than_the_rules_are_kept(on_v5e):
    few, many = (tune.tune(judge, 256, 2, 256, 512) for judge in (steps, lambda f, s: 1 / steps(f, s)))
    assert not any(few.values())  # the rules take as few grid steps as can be
    assert {key: block for key, block in many.items() if block} == {
        "product bfloat16 tile=16 K=256 N=512": [128],
        "swiglu bfloat16 tile=16 K=256 N=512": [128],
        "swiglu_kept bfloat16 tile=16 K=256 N=512": [128],
        "product_transposed bfloat16 tile=16 K=512 N=256": [128],
        "sum_transposed bfloat16 tile=16 K=512 N=256": [128],
    }


def test_a_kernel_is_judged_alone(on_v5e):
    def large_results(function, shapes):
        jaxpr = jax.make_jaxpr(lambda *a: function(*a))(*shapes)
        smallest = min(shape.size for shape in shapes[1:])
        made.update(eqn.primitive.name for eqn in jaxpr.eqns if eqn.outvars[0].aval.size >= smallest)

    made = set()
    tune.tune(large_results, 256, 2, 256, 512)
    assert made == {"pallas_call", "convert_element_type"}  # the weights' gradient is float32 in its kernel


def test_time_is_taken_of_rows_in_groups():
    def live(layout, x):
        seen.append((layout.tile, x.dtype))
        return layout.live_tiles, x + 1

    seen, layout = [], jax.eval_shape(functools.partial(align_rows, num_groups=2), jnp.zeros(64, jnp.int32))
    assert tune.judge_by_time(live, (layout, jax.ShapeDtypeStruct((layout.num_slots, 8), jnp.bfloat16))) > 0
    assert seen == [(layout.tile, jnp.bfloat16)]


def test_the_table_keeps_what_was_found_of_other_chips_and_shapes(on_v5e, tmp_path):
    path, fewer = tmp_path / "table.json", lambda f, s: 1 / steps(f, s)
    stale = tpu_tiles.table_key("weight_gradient", "bfloat16", 16, 256, 512)
    path.write_text(json.dumps({"v6e": {"a": [1]}, "v5e": {"b": [2], stale: [3, 4]}}))

    def until_another_width(function, shapes):
        if 384 in shapes[-1].shape:
            raise KeyboardInterrupt
        return fewer(function, shapes)

    with pytest.raises(KeyboardInterrupt):
        tune.fill(path, "v5e", until_another_width, 256, 2, [(256, 512), (256, 384)])
    table = json.loads(path.read_text())
    assert table["v6e"] == {"a": [1]}
    assert table["v5e"].pop("b") == [2] and stale not in table["v5e"]
    assert table["v5e"]["product_transposed bfloat16 tile=16 K=512 N=256"] == [128] and len(table["v5e"]) == 5
    tune.fill(path, "v4", steps, 256, 2, [(256, 512)])
    assert json.loads(path.read_text())["v4"] == {}  # looked at, and the rules are as good


def test_two_calls_that_a_dump_cannot_tell_apart_are_refused():
    layout = align_rows(jnp.zeros(64, jnp.int32), 2, tile=16)
    x, w = jnp.zeros((layout.num_slots, 256)), jnp.zeros((2, 256, 512))

    def twice(x):
        return [product((x,), (w[:, :, :width],), layout, transpose=False) for width in (512, 256)]

    with pytest.raises(ValueError, match="kernel grouped_product is called with two shapes"):
        steps(twice, (x,))


def test_kernels_take_the_tables_blocks(on_v5e, monkeypatch):
    layout = align_rows(jnp.zeros(64, jnp.int32), 2, tile=16)
    x, w, dy = jnp.zeros((layout.num_slots, 256)), jnp.zeros((2, 256, 512)), jnp.zeros((layout.num_slots, 512))
    rows = functools.partial(product, layout=layout, transpose=False)
    calls = (lambda: rows((x,), (w,))), (lambda: tpu_weights.weight_gradient(x, dy, layout))
    by_rule = [steps(call, ()) for call in calls]
    table = {
        tpu_tiles.table_key("product", "float32", 16, 256, 512): [128],
        tpu_tiles.table_key("weight_gradient", "float32", 16, 256, 512): [128, 256],
    }
    monkeypatch.setattr(tpu_tiles, "_table", lambda: {"v5e": table})
    assert [steps(call, ()) for call in calls] == [4 * by_rule[0], 4 * by_rule[1]]


def test_a_block_fits_what_a_core_has(on_v5e):
    for width in (96, 128, 1000, 4096, 14336):
        for depth in (64, 1024, 4096, 14336):
            inner, outer = tpu_tiles.gradient_blocks(depth, width, 256, 2)
            assert 12 * inner * outer + 4 * 256 * (inner + outer) <= V5E.vmem_capacity_bytes
            assert all(block == size or block % 128 == 0 for block, size in ((inner, depth), (outer, width)))
            per_column, fixed = 4 * (depth + 256) + 4 * 256, 4 * 256 * depth
            block = tpu_tiles.columns(width, per_column, fixed)
            assert block * per_column + fixed <= V5E.vmem_capacity_bytes


def test_without_a_tpu_to_time_or_name_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["tune"])
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    with pytest.raises(SystemExit) as exit_:
        tune.main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: this machine has no TPU; name one to compile for with --target\n"


def test_the_command_adds_what_it_found_to_the_table_that_kernels_read(on_v5e, monkeypatch, tmp_path, capsys):
    table = tmp_path / "tpu_tiles.json"
    before = {"v5e": {"product bfloat16 tile=16 K=256 N=512": [256], "of another shape": [8]}, "v6e": {"kept": [1]}}
    table.write_text(json.dumps(before))
    monkeypatch.setattr(tpu_tiles, "TABLE", table)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(tune, "judge_by_time", lambda f, s: 1 / steps(f, s))  # the more grid steps the better
    monkeypatch.setattr("sys.argv", ["tune", "--rows", "256", "--shape", "256", "512"])
    tpu_tiles._table.cache_clear()
    try:
        tune.main()
        assert tpu_tiles.tuned("product", "bfloat16", 16, 256, 512) == (128,)
    finally:
        monkeypatch.undo()
        tpu_tiles._table.cache_clear()
    written = json.loads(table.read_text())
    assert written.pop("v6e") == before["v6e"]
    assert written == {
        "v5e": {
            "of another shape": [8],
            "product bfloat16 tile=16 K=256 N=512": [128],
            "product_transposed bfloat16 tile=16 K=512 N=256": [128],
            "sum_transposed bfloat16 tile=16 K=512 N=256": [128],
            "swiglu bfloat16 tile=16 K=256 N=512": [128],
            "swiglu_kept bfloat16 tile=16 K=256 N=512": [128],
        }
    }
    assert "5 blocks better than the rules for K=256 N=512 on v5e" in capsys.readouterr().out


@pytest.mark.parametrize(("inner", "outer", "parts"), [(256, 512, 1), (128, 512, 2), (128, 128, 8)])
def test_a_block_that_leaves_a_core_idle_is_judged_so(inner, outer, parts):
    layout = align_rows(jnp.zeros(64, jnp.int32), 2, tile=16)
    x, dy = jnp.zeros((layout.num_slots, 256)), jnp.zeros((layout.num_slots, 512))
    traced = jax.make_jaxpr(lambda: tpu_weights.weight_gradient(x, dy, layout, block=(inner, outer)))()
    ((steps, parallel, *_),) = _pallas_calls(traced.jaxpr).values()
    assert parallel == parts
    schedule = Schedule("any", 10, 0, steps, parallel, 0, 0, (0,))
    alone, shared = (schedule.seconds(target)[0] * PEAKS[target][1] for target in ("v5e", "v5p"))
    assert alone == 10 * steps
    assert shared == (alone if parts == 1 else alone / 2)


def test_an_odd_part_makes_one_core_wait():
    assert Schedule("any", 10, 0, 9, 3, 0, 0, (0,)).seconds("v5p")[0] * PEAKS["v5p"][1] == 60
