"""Grouped products under jax's transformations: the same numbers."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from kernels_pallas.grouped_matmul import (
    align_rows,
    group_rows,
    grouped_matmul,
    grouped_swiglu,
)
from tests.kernels_pallas.grouped import assert_same, draw, problem


def test_rematerialised_gradient_is_the_gradient(rng, fast):
    if fast == "tpu":
        pytest.skip("interpret mode calls back to Python, which cannot be rematerialised; test_compiled compiles it")
    loss, *inputs = problem(rng, fast)
    plain = jax.jit(jax.grad(loss, (0, 1)))(*inputs)
    assert_same(jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))(*inputs), plain)


def test_vmap_is_a_loop(rng, fast):
    loss, x, weights, ids = problem(rng, fast)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    xs, many_ids = jnp.stack([x, -x]), jnp.stack([ids, (ids + 2) % 4 - 1])
    expected = [gradient(a, weights, i) for a, i in zip(xs, many_ids, strict=True)]
    got = jax.vmap(gradient, (0, None, 0))(xs, weights, many_ids)
    assert_same(got, jax.tree.map(lambda *a: jnp.stack(a), *expected))
    same_layout = jax.vmap(gradient, (0, None, None))(xs, weights, ids)
    assert_same(jax.tree.map(lambda a: a[0], same_layout), expected[0])


def test_scan_over_layers_is_a_loop(rng, fast):
    _, x, weights, ids = problem(rng, fast)
    layers = jnp.stack([weights, -weights])

    def layer(h, weights, layout):
        y = grouped_swiglu(h, weights, weights, layout, implementation=fast)
        return h + grouped_matmul(y, weights, layout, transpose_weights=True, implementation=fast)

    def scanned(x, layers):
        layout = align_rows(ids, 3, tile=16)
        h, _ = jax.lax.scan(lambda h, w: (layer(h, w, layout), None), group_rows(x, layout), layers)
        return jnp.sum(jnp.sin(h))

    def unrolled(x, layers):
        layout = align_rows(ids, 3, tile=16)
        return jnp.sum(jnp.sin(layer(layer(group_rows(x, layout), layers[0], layout), layers[1], layout)))

    assert_same(jax.jit(jax.grad(scanned, (0, 1)))(x, layers), jax.jit(jax.grad(unrolled, (0, 1)))(x, layers))


def test_inside_shard_map_each_device_groups_its_own_rows(rng, fast):
    loss, x, weights, _ = problem(rng, fast)
    devices = min(8, jax.device_count())
    mesh = jax.make_mesh((devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    xs = jnp.asarray(draw(rng, "float32", devices, *x.shape))
    ids = jnp.asarray(rng.integers(-1, 3, (devices, x.shape[0])), jnp.int32).at[0].set(1)

    def local(x, weights, ids):
        value, gradient = jax.value_and_grad(loss, 1)(x[0], weights, ids[0])
        return jax.lax.psum((value, gradient), "data")

    split = PartitionSpec("data")
    sharded = jax.shard_map(
        local, mesh=mesh, in_specs=(split, PartitionSpec(), split), out_specs=PartitionSpec(), check_vma=False
    )
    alone = jax.jit(jax.value_and_grad(loss, 1))
    each = [alone(a, weights, i) for a, i in zip(xs, ids, strict=True)]
    assert_same(jax.jit(sharded)(xs, weights, ids), jax.tree.map(lambda *a: sum(a), *each))


def test_a_policy_can_save_the_products_by_name(rng):
    loss, *inputs = problem(rng, "xla")
    loops = {}
    for name, policy in {
        "nothing": jax.checkpoint_policies.nothing_saveable,
        "named": jax.checkpoint_policies.save_only_these_names("grouped_matmul"),
    }.items():
        text = str(jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy)))(*inputs))
        loops[name] = text.count(" while[")
    assert loops["named"] < loops["nothing"]
