"""The analytic FLOPs of auxiliary routers against the matrix products that they add to what is traced.

All other products are the same with and without them, in loops or not, so each is counted once and the difference is
theirs.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from mot_jax.config.experts import ExpertChoice
from mot_jax.nn import transformer
from mot_jax.objectives.next_token import loss_sum
from mot_jax.training.flops import forward_flops_by_part, forward_flops_per_token, train_flops_by_part
from mot_jax.training.step import gradients
from tests.batches import VOCABULARY, random_batch, small_run
from tests.training.test_flops_experts import (
    CHOOSING,
    HALVED,
    LENGTH,
    ROWS,
    TOKENS,
    by_modality,
    inner_jaxprs,
    wide_model,
)

# The first of two layers is seen by half the tokens; two pools choose their tokens, a third is one feed-forward.
MODEL = wide_model(
    plan=((1, HALVED),), auxiliary_routers=True, **by_modality(text=CHOOSING, image=ExpertChoice(experts=2))
)
WITHOUT = dataclasses.replace(MODEL, auxiliary_routers=False)


def products(jaxpr) -> int:
    """FLOPs of the matrix products in a jaxpr, those in loops once."""
    total = 0
    for eqn in jaxpr.eqns:
        total += sum(products(getattr(inner, "jaxpr", inner)) for inner in inner_jaxprs(eqn))
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            total += 2 * math.prod(shape[axis] for axis in contracted) * eqn.outvars[0].aval.size
    return total


def forward(model):
    """As one that is differentiated computes it, what its backward pass would need included."""
    return lambda params, batch: jax.vjp(lambda params: loss_sum(model, params, batch, VOCABULARY)[0], params)[0]


def step(model, only=None):
    run = small_run(model, ROWS, LENGTH, only=only)
    return lambda params, batch: gradients(run, VOCABULARY, params, batch, jnp.int32(0))


def traced(rng, function, model) -> int:
    return products(jax.make_jaxpr(function)(transformer.abstract(model), random_batch(rng, ROWS, LENGTH)).jaxpr)


def test_a_forward_pass_has_the_products_that_the_formula_says(rng):
    added = traced(rng, forward(MODEL), MODEL) - traced(rng, forward(WITHOUT), WITHOUT)
    assert added == TOKENS * forward_flops_by_part(MODEL, LENGTH)["auxiliary"] > 0
    assert forward_flops_by_part(WITHOUT, LENGTH)["auxiliary"] == 0


@pytest.mark.parametrize("only", [None, "auxiliary_routers"])
def test_a_step_has_the_products_that_the_formula_says(only, rng):
    """More than a step without them; more than a forward pass without them, where they alone are trained."""
    others = forward(WITHOUT) if only else step(WITHOUT)
    added = traced(rng, step(MODEL, only), MODEL) - traced(rng, others, WITHOUT)
    counted = train_flops_by_part(MODEL, LENGTH, only)
    assert added == TOKENS * counted["auxiliary"]
    rest = forward_flops_per_token(WITHOUT, LENGTH)
    assert sum(counted.values()) - counted["auxiliary"] == (rest if only else 3 * rest)
