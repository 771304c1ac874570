"""The benchmark of grouped products: what its arms compute, the floor beside them, and peers that fail."""

import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import all as benchmarks


@pytest.fixture
def modules(monkeypatch) -> types.SimpleNamespace:
    """Scripts import each other by bare name."""
    monkeypatch.syspath_prepend(benchmarks.HERE)
    names = ("grouped_settings", "grouped_arms", "grouped_beside", "report")
    found = {name: importlib.import_module(name) for name in names}
    spec = importlib.util.spec_from_file_location("grouped_script", benchmarks.HERE / "grouped_matmul.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return types.SimpleNamespace(script=script, **found)


def small(modules, shares=(0.75, 0.25)):
    return modules.grouped_settings.Setting(8, 16, 24, shares, "float32")


def test_ours_and_ragged_dot_compute_the_same(modules):
    setting, arms = small(modules), modules.grouped_arms
    problem = arms.draw(setting)
    every = arms.arms(setting, problem, arms.peers()[0])
    back = np.argsort(np.argsort(problem.ids, kind="stable"))  # of rows in order, as peers take them

    def in_order(arm, rows):
        if arm == "grouped":
            (layout,) = every[arm].extra
            return rows[layout.slot_of_pair[:, 0]]
        return rows[back]

    assert set(every) == {"dense", "grouped", "lax.ragged_dot"}
    found = []
    for name in ("grouped", "lax.ragged_dot"):
        y, (dx, dw) = arms.call("both gradients", every[name], problem)()
        found.append((in_order(name, y), in_order(name, dx), dw))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_the_floor_counts_what_the_compiler_counts(modules):
    setting, arms = small(modules, (1.0,)), modules.grouped_arms  # one group: all that is dense is needed
    problem = arms.draw(setting)
    dense = arms.arms(setting, problem, {})["dense"]
    for what in ("weight gradient", "feed-forward"):
        call = arms.call(what, dense, problem)
        program = call.func.lower(*call.args).compile()
        flops, size = setting.work(what)
        assert flops <= program.cost_analysis()["flops"] < 1.2 * flops + 40 * 8 * 24  # activations beside products
        results = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(program.out_info))
        assert size == program.memory_analysis().argument_size_in_bytes + results


def test_a_row_for_every_arm_and_a_floor_below_the_dense_one(modules, monkeypatch):
    def refuses(x, w, sizes):
        raise NotImplementedError("tiles\nof another size")

    monkeypatch.setattr(modules.script, "MEASURED", ("forward",))
    setting = small(modules)
    others = {"refuses": refuses, "lax.ragged_dot": jax.lax.ragged_dot}
    seconds, refused = modules.script.measure(setting, others, 2)
    assert refused == ["refuses, forward: NotImplementedError: tiles"]
    rows = {row["name"]: row for row in modules.script.table({"s": setting}, {"s": seconds}, read=1e15)}
    arms = {f"s | forward | {arm}" for arm in ("dense", "grouped", "lax.ragged_dot", "floor")}
    last = {"dense, float32, at best", "memory, read in order"}
    assert set(rows) == arms | {"s | norm | dense", "s | norm | grouped"} | last
    dense, grouped, floor = (rows[f"s | forward | {arm}"] for arm in ("dense", "grouped", "floor"))
    assert floor["value"] == pytest.approx(dense["value"]) and floor["ratio"] == pytest.approx(1)  # by its own rate
    assert grouped["TFLOP/s"] == pytest.approx(setting.work("forward")[0] / grouped["value"] / 1e9)
    slow = {row["name"]: row for row in modules.script.table({"s": setting}, {"s": seconds}, read=1e3)}
    assert slow["s | forward | floor"]["value"] == pytest.approx(setting.work("forward")[1])  # at 1,000 bytes a second


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_every_setting_is_whole(modules, platform):
    every = modules.grouped_settings.settings(platform)
    for setting in every.values():
        assert sum(setting.shares) == pytest.approx(1)
        assert jnp.dtype(setting.dtype) in (jnp.float32, jnp.bfloat16)
    published = {(8192, 4096, 14336, 8), (131072, 4096, 1536, 128)}
    shapes = {(s.rows, s.depth, s.width, len(s.shares)) for s in every.values()}
    assert (published <= shapes) == (platform == "gpu")
