"""The transformer as pure functions over a plain nested dict of parameters: init, apply, forward, logits."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from mot_jax import config
from mot_jax.batch import Batch
from mot_jax.config import RULES, Model, Rules
from mot_jax.config.rules import split_in_place
from mot_jax.nn import blockwise, rotary
from mot_jax.nn.attention import causal_in_document
from mot_jax.nn.block import Block, num_groups
from mot_jax.nn.context import Attend, Context, Noise, Recall, local_blocks
from mot_jax.nn.embedding import Embedding
from mot_jax.nn.norm import Norm
from mot_jax.nn.report import Report
from mot_jax.nn.rows import Rows, enter, leave, make_rows
from mot_jax.nn.values import recall_from, tables
from mot_jax.parallel.collectives import gather
from mot_jax.parallel.rules import gathered, local_shape, partition_spec
from mot_jax.routing.token_choice import hash_bucket

# "dots" keeps what products made; those of grouped weights and of long attention are loops, and named instead.
REMAT = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("grouped_matmul", blockwise.SAVED),
    ),
    "full": None,
}


HASH_SALT = 1 << 16  # apart from the layers' own


@dataclasses.dataclass(frozen=True)
class Pass:
    """How one forward pass runs: attention, reading memories (None: the model's tables), how routers decide, where."""

    attend: Attend
    recall: Recall | None = None
    causal: bool = False
    noise: Noise | None = None
    rules: Rules = RULES


class Transformer(nnx.Module):
    """Tokens -> hidden states. Layers are named by absolute index; the final norm is untied with the other norms."""

    def __init__(self, model: Model, rngs: nnx.Rngs):
        self.model = model
        self.embedding = Embedding(model.vocab_size, model.dim, rngs)
        self.layers = nnx.Dict({str(i): Block(model, block, rngs) for i, block in enumerate(config.expand(model))})
        groups = num_groups(model) if "norm" in model.untied else None
        self.final_norm = Norm(model.dim, model.norm, model.norm_epsilon, groups)
        if model.memory is not None:
            self.values = tables(model, rngs)
        if not model.tied_head:
            self.head = Embedding(model.vocab_size, model.dim, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        modality_ids: Int[Array, "B S"],
        positions: Int[Array, "B S A"],
        segment_ids: Int[Array, "B S"],
        run: Pass,
    ) -> tuple[Float[Array, "B S D"], dict[int, Report]]:
        model = self.model
        if model.owner == "modality":
            group_ids = jnp.asarray(config.group_of_modality(model), jnp.int32)[modality_ids]
        else:
            group_ids = hash_bucket(tokens, num_groups(model), HASH_SALT)
        rates = rotary.frequencies(config.heads(model)[2], model.rope_theta, model.rope_scaling)
        rope = rotary.angles(positions, rates)
        rows = make_rows(tokens, group_ids, segment_ids, rope, num_groups(model) if _in_group_order(model) else None)
        x = enter(rows, self.embedding(tokens, compute_dtype(model)))
        x, reports = self._layers(x, rows, run)
        return leave(rows, self.final_norm(x, rows)), reports

    def _layers(self, x: Array, rows: Rows, run: Pass) -> tuple[Array, dict[int, Report]]:
        model, blocks = self.model, config.expand(self.model)
        layers = [nnx.split(self.layers[str(i)]) for i in range(len(blocks))]
        parts = local_blocks(model.selection_groups)
        recall = run.recall
        if recall is None and model.memory is not None:
            recall = recall_from(model, {name: table[...] for name, table in self.values.items()}, run.rules)

        def one(graph, layer, index, params, x):
            context = Context(run.attend, recall, layer, index, parts, run.causal, run.noise)
            return nnx.merge(graph, params)(x, rows, context)

        if model.remat != "none":
            one = jax.checkpoint(one, policy=REMAT[model.remat], static_argnums=(0, 1))
        reports = {}
        if not model.scan_layers:
            for index, (graph, params) in enumerate(layers):
                x, reports[index] = one(graph, index, index, params, x)
            return x, reports
        # A memory's layer has to know which it is.
        for _, equal in itertools.groupby(
            range(len(blocks)), key=lambda i: (blocks[i], config.has_memory(blocks[i]) and i)
        ):
            indices = list(equal)
            graph = layers[indices[0]][0]
            if len(indices) == 1:
                (index,) = indices
                x, reports[index] = one(graph, index, index, layers[index][1], x)
                continue
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layers[i][1] for i in indices))

            def body(x, layer, graph=graph):
                # One body serves the whole run, so attention cannot be told which layer it is in.
                return one(graph, None, *layer, x)

            x, found = jax.lax.scan(body, x, (jnp.asarray(indices, jnp.int32), stacked))
            for place, index in enumerate(indices):
                reports[index] = jax.tree.map(lambda leaf, place=place: leaf[place], found)
        return x, reports


def _in_group_order(model: Model) -> bool:
    """Whether rows are kept by group: parts other than experts own weights, and experts sort their tokens anyway."""
    return "norm" in model.untied or any(
        {"attention", "norm"} & {*block.untied}
        or ("feed_forward" in block.untied and (config.has_memory(block) or not config.has_experts(model, block)))
        for block in config.expand(model)
    )


def compute_dtype(model: Model) -> jnp.dtype:
    """The dtype of activations; `auto` is bfloat16 wherever the default device is not a CPU."""
    if model.dtype != "auto":
        return jnp.dtype(model.dtype)
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")


@functools.lru_cache(maxsize=64)
def _split(model: Model, rules: Rules = RULES):
    """The module without values: (graph, shapes). Its parameters know what they are split over."""

    def make():
        module = Transformer(model, nnx.Rngs(params=0))
        for _, node in nnx.iter_graph(module):
            if isinstance(node, nnx.Variable):
                node.set_metadata("rules", rules)
        return module

    return nnx.split(nnx.eval_shape(make))


def init(model: Model, key: Array) -> dict:
    """float32 parameters of a resolved model, a nested dict; an untied one has a leading axis of groups."""
    return nnx.to_pure_dict(nnx.state(Transformer(model, nnx.Rngs(params=key)), nnx.Param))


def abstract(model: Model) -> dict:
    """The tree of `init` as shapes, without making anything."""
    return nnx.to_pure_dict(_split(model)[1])


def logical_axes(model: Model) -> dict:
    """The tree of `init` with each parameter's axis names; "group" marks untied ones."""
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    state = jax.tree.map(lambda v: v.replace(v.get_metadata("axes")), _split(model)[1], is_leaf=is_variable)
    return nnx.to_pure_dict(state)


def partition_specs(model: Model, rules: Rules = RULES) -> dict:
    """The tree of `init` with where each parameter lives, as `jax.shard_map` wants it."""
    axes = logical_axes(model)
    return jax.tree.map(lambda names: partition_spec(names, rules), axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def merge(model: Model, params: dict, rules: Rules = RULES) -> Transformer:
    """The module with these parameters, inside a manual mesh one device's parts by these rules.

    Raises:
      ValueError: a parameter is missing, unknown, or of another shape (NNX itself checks none of it).
    """
    path_of = lambda path: "/".join(str(key.key) for key in path)  # noqa: E731
    given = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple))
    expected = {
        path_of(path): local_shape(leaf.shape, names, rules)
        for (path, leaf), names in zip(jax.tree_util.tree_leaves_with_path(abstract(model)), axes, strict=True)
    }
    if missing := sorted(expected.keys() - given.keys()):
        raise ValueError(f"parameter {missing[0]} is missing ({len(missing)} in all)")
    if unknown := sorted(given.keys() - expected.keys()):
        raise ValueError(f"parameter {unknown[0]} is not part of this model ({len(unknown)} in all)")
    for name, shape in expected.items():
        if np.shape(given[name]) != shape:
            raise ValueError(f"parameter {name} has shape {np.shape(given[name])}, expected {shape}")
    return nnx.merge(_split(model, rules)[0], params)


def apply(
    model: Model,
    params: dict,
    batch: Batch,
    *,
    causal: bool = False,
    noise: Noise | None = None,
    recall: Recall | None = None,
    rules: Rules = RULES,
) -> tuple[Float[Array, "B S D"], dict[int, Report]]:
    """Hidden states of a packed batch after the final norm, and what each layer reports of its routing.

    Never logits: objectives own the head. Inside a manual mesh `params` and `batch` are one device's shards.

    Args:
      causal: nothing depends on later tokens or other rows: auxiliary routers stand in where training compares
        tokens, and no capacity is limited.
      noise: for routers that want some in training; None adds none.
      recall: reads memories' tables instead of the pass itself; see `Context`.
      rules: what of a parameter is split over which mesh axis (`config.rules_with`).
    """
    batch = jax.tree.map(jnp.asarray, batch)

    def attend(layer: int | None, q: Array, k: Array, v: Array, segment_ids: Array) -> Array:
        return causal_in_document(q, k, v, segment_ids)

    run = Pass(attend, recall, causal, noise, rules)
    return merge(model, params, rules)(batch.tokens, batch.modality_ids, batch.positions, batch.segment_ids, run)


def forward(
    model: Model,
    params: dict,
    tokens: Int[Array, "B S"],
    modality_ids: Int[Array, "B S"],
    positions: Int[Array, "B S A"],
    segment_ids: Int[Array, "B S"],
    attend: Attend,
    rules: Rules = RULES,
) -> Float[Array, "B S D"]:
    """Hidden states with attention supplied by the caller, layer by layer; a cache lives in `attend`.

    Routers see no later token and no other row, whatever they do in training. Inside a manual mesh `params` are one
    device's shards, and `attend` is given its heads.
    """
    unrolled = dataclasses.replace(model, scan_layers=False, remat="none")
    run = Pass(attend, causal=True, rules=rules)
    return merge(unrolled, params, rules)(tokens, modality_ids, positions, segment_ids, run)[0]


def head_table(model: Model, params: dict, dtype: jnp.dtype, rules: Rules = RULES) -> Float[Array, "V D"]:
    """The output table in the compute dtype; inside a manual mesh this device's part of the vocabulary."""
    table = params["embedding" if model.tied_head else "head"]["table"]
    return gathered(table.astype(dtype), ("vocab", "embed"), rules)


def logits(model: Model, params: dict, hidden: Float[Array, "... D"], rules: Rules = RULES) -> Float[Array, "... V"]:
    """float32 logits over the whole vocabulary; for the few positions being sampled, not for training."""
    table = head_table(model, params, hidden.dtype, rules)
    found = jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
    return gather(found, split_in_place(rules, "vocab"), found.ndim - 1)
