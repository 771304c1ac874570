"""The analytic FLOPs of experts and mixture-of-depths against the products a forward pass carries out.

Grouped products are loops whose trip counts XLA's cost analysis does not know. So a forward pass is run equation by
equation, and its products are added up as often as loops repeat them. XLA confirms what has no loop.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Literal

from mot_jax.config import Block, FrozenMapping, expand
from mot_jax.config.experts import AverageKey, Depth, ExpertChoice, HashExperts, TokenChoice
from mot_jax.config.memory import Memory
from mot_jax.nn import transformer
from mot_jax.training.flops import forward_flops_by_group, forward_flops_per_token
from tests.batches import VOCABULARY, random_batch, small_model

ROWS, LENGTH = 2, 128
TOKENS = ROWS * LENGTH
HALVED = (Block(depth=Depth(capacity=0.5)), Block())
QUARTERED = (Block(depth=Depth(capacity=0.25)), Block())


def inner_jaxprs(eqn) -> list:
    """Of loops, branches and calls."""
    leaves = jax.tree.leaves(list(eqn.params.values()), is_leaf=lambda value: hasattr(value, "eqns"))
    return [value for value in leaves if hasattr(value, "eqns")]


def multiplies(eqn) -> bool:
    inner = (inside for jaxpr in inner_jaxprs(eqn) for inside in getattr(jaxpr, "jaxpr", jaxpr).eqns)
    return eqn.primitive.name == "dot_general" or any(map(multiplies, inner))


def products(closed, arguments) -> tuple[list, jax.Array]:
    """(results, multiply-adds of the matrix products that lead to them) of a closed jaxpr."""
    jaxpr, total = closed.jaxpr, jnp.int32(0)
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*closed.consts, *arguments], strict=True))

    def read(atoms):
        return [atom.val if isinstance(atom, Literal) else values[atom] for atom in atoms]

    for eqn in jaxpr.eqns:
        name, params, inputs = eqn.primitive.name, eqn.params, read(eqn.invars)
        if not inner_jaxprs(eqn) or (name in ("while", "cond", "scan") and not multiplies(eqn)):
            if name == "dot_general":
                ((contracted, _), _) = params["dimension_numbers"]
                total += math.prod(inputs[0].shape[axis] for axis in contracted) * eqn.outvars[0].aval.size
            results = eqn.primitive.bind(*inputs, **params)
            results = results if eqn.primitive.multiple_results else [results]
        else:
            results, more = {"while": loop, "scan": repeat, "cond": branch}.get(name, call)(eqn, inputs)
            total += more
        values.update(zip(eqn.outvars, results, strict=True))
    return read(jaxpr.outvars), total


def loop(eqn, inputs):
    first, second = eqn.params["cond_nconsts"], eqn.params["cond_nconsts"] + eqn.params["body_nconsts"]

    def go_on(carry):
        return products(eqn.params["cond_jaxpr"], [*inputs[:first], *carry[0]])[0][0]

    def turn(carry):
        results, more = products(eqn.params["body_jaxpr"], [*inputs[first:second], *carry[0]])
        return results, carry[1] + more

    return jax.lax.while_loop(go_on, turn, (inputs[second:], jnp.int32(0)))


def branch(eqn, inputs):
    """Only back ends branch around products."""
    taken = (platforms is None or "cpu" in platforms for platforms in eqn.params["branches_platforms"])
    return products(eqn.params["branches"][list(taken).index(True)], inputs[1:])


def scan_inputs(eqn, inputs) -> tuple[list, list, list]:
    """(constants, what is carried, what is scanned)."""
    if "ft_in" in eqn.params:  # jax 0.11
        return tuple(map(list, eqn.params["ft_in"].update(inputs).unpack()))
    first = eqn.params["num_consts"]
    second = first + eqn.params["num_carry"]
    return inputs[:first], inputs[first:second], inputs[second:]


def repeat(eqn, inputs):
    constants, carried, scanned = scan_inputs(eqn, inputs)

    def turn(carry, slices):
        results, more = products(eqn.params["jaxpr"], [*constants, *carry[0], *slices])
        return (results[: len(carried)], carry[1] + more), results[len(carried) :]

    length, reverse = eqn.params["length"], eqn.params["reverse"]
    (results, total), stacked = jax.lax.scan(turn, (carried, jnp.int32(0)), scanned, length=length, reverse=reverse)
    return [*results, *stacked], total


def call(eqn, inputs):
    (inner,) = inner_jaxprs(eqn)
    return products(inner, inputs)


def wide_model(**fields):
    return small_model(**{"dim": 128, "num_layers": 2, "ffn_dim": 384, **fields})


def full_batch(rng, shares=(0.5, 0.25, 0.25)):
    """No padding, one document a row, and exactly these shares of the batch's tokens of each modality."""
    counts = [int(TOKENS * share) for share in shares]
    modality = rng.permutation(np.repeat(np.arange(3), counts)).reshape(ROWS, LENGTH).astype(np.int32)
    first = np.array([np.flatnonzero(VOCABULARY.token_modality == i)[0] for i in range(3)])
    batch = random_batch(rng, ROWS, LENGTH)
    return type(batch)(
        **{
            **vars(batch),
            "tokens": (first[modality] + rng.integers(0, 20, modality.shape)).astype(np.int32),
            "modality_ids": modality,
            "segment_ids": np.ones_like(modality),
            "positions": np.broadcast_to(np.arange(LENGTH, dtype=np.int32)[:, None], (ROWS, LENGTH, 1)),
        }
    )


def forward(model):
    """Parameters, and the forward pass down to the logits."""
    params = transformer.init(model, jax.random.key(0))
    return params, lambda params, batch: transformer.logits(model, params, transformer.apply(model, params, batch)[0])


def counted(model, *batches) -> list[int]:
    """FLOPs of the products that each batch's forward pass carries out."""
    params, run = forward(model)
    closed = jax.make_jaxpr(run)(params, batches[0])
    count = jax.jit(lambda leaves: products(closed, leaves)[1])
    return [2 * int(count(jax.tree.leaves((params, batch)))) for batch in batches]


def analytic(model) -> float:
    """Of the batch. Rows this short are scored whole and masked, twice what causal attention needs: as rows of 2 S."""
    return forward_flops_per_token(model, 2 * LENGTH) * TOKENS


def without_sum_of_values(model) -> float:
    """The same of a model with memories, whose weighted sums of values are no matrix products."""
    memory = model.memory
    return analytic(model) - 2 * TOKENS * len(memory.layers) * memory.reads * (memory.value_dim or model.dim)


def by_modality(**kinds):
    return {"untied": ("feed_forward",), "feed_forward": FrozenMapping(kinds)}


CHOOSING = ExpertChoice(experts=4)
EXACT = {
    "dense": {},
    "expert choice": {"feed_forward": CHOOSING},
    "half a token's share": {"feed_forward": ExpertChoice(experts=2, capacity=0.5)},
    "narrow": {"feed_forward": ExpertChoice(experts=4, ffn_dim=64, capacity=2.0)},
    "by modality": {"untied": ("feed_forward",), "feed_forward": ExpertChoice(experts=2)},
    "pools of two sizes": by_modality(text=CHOOSING, image=ExpertChoice(experts=2)),
    "depth": {"plan": ((1, QUARTERED),)},
    "depth with experts": {"plan": ((1, HALVED),), "feed_forward": CHOOSING},
}


@pytest.mark.parametrize("case", EXACT)
def test_products_are_what_the_formula_says(case, rng):
    """Every expert's tokens fill its tiles here, so that no product is of padding."""
    model = wide_model(**EXACT[case])
    assert counted(model, full_batch(rng)) == [analytic(model)]


MEMORIES = {
    "memory": {"memory": Memory(layers=(1,), num_keys=16, top_k=4)},
    "plain memory": {"memory": Memory(layers=(0, 1), num_keys=8, top_k=4, gated=False)},
}


@pytest.mark.parametrize("case", MEMORIES)
def test_products_of_memories_are_what_the_formula_says(case, rng):
    model = wide_model(**MEMORIES[case])
    assert counted(model, full_batch(rng)) == [without_sum_of_values(model)]


PADDED = {
    "top-1 of 8": {"feed_forward": TokenChoice(experts=8, top_k=1, softmax="before")},
    "top-2 of 4 with a shared one": {"feed_forward": TokenChoice(experts=4, top_k=2, shared=1, ffn_dim=64)},
    "hash": {"feed_forward": HashExperts(experts=4)},
    "average key": {"feed_forward": AverageKey(experts=8, top_k=2, ffn_dim=64)},
    "untied": {"untied": ("attention", "feed_forward", "norm")},
}


@pytest.mark.parametrize("case", PADDED)
def test_products_are_what_the_formula_says_and_padding(case, rng):
    """At most a tile a group is padding, and no tile is larger than a fifth of a group's share of the rows."""
    model = wide_model(**PADDED[case])
    expected, (got,) = analytic(model), counted(model, full_batch(rng))
    assert expected <= got <= 1.2 * expected


@pytest.mark.parametrize("capacity", [0.25, 0.5])
def test_depth_saves_in_the_compiled_program_what_the_formula_says(capacity, rng):
    """Without grouped products XLA's own count knows everything, also what is no product."""
    batch, costs, expected = full_batch(rng), [], []
    for depth in (None, Depth(capacity=capacity)):
        model = wide_model(plan=((2, (Block(depth=depth), Block())),))
        params, run = forward(model)
        costs.append(jax.jit(run).lower(params, batch).compile().cost_analysis()["flops"])
        expected.append(analytic(model))
    assert costs[0] == pytest.approx(expected[0], rel=0.05)
    assert costs[0] - costs[1] == pytest.approx(expected[0] - expected[1], rel=0.05)


def test_pools_of_unequal_rates_cost_at_most_the_hungriest_ones(rng):
    """A batch of the hungriest pool's tokens alone costs what the formula says, another what its groups' counts say."""
    kinds = by_modality(text=ExpertChoice(experts=2, capacity=2.0), image=ExpertChoice(experts=2))
    model = wide_model(**kinds)
    only_text, mixed = counted(model, full_batch(rng, (1.0, 0.0, 0.0)), full_batch(rng))
    assert only_text == analytic(model)
    experts = 2 * TOKENS * len(expand(model)) * 3 * model.dim * 384
    assert only_text - mixed == experts / 2  # half the tokens meet one expert instead of two
    by_group = forward_flops_by_group(model, 2 * LENGTH)
    shares = {"text": 0.5, "image": 0.25, "speech": 0.25}
    assert mixed == sum(share * TOKENS * sum(by_group[group].values()) for group, share in shares.items())
