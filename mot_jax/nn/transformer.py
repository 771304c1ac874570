"""The transformer as pure functions over a plain nested dict of parameters: init, apply, forward, logits."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mot_jax import config
from mot_jax.batch import Batch
from mot_jax.config import Model
from mot_jax.nn import rotary
from mot_jax.nn.attention import Attend, causal_in_document
from mot_jax.nn.block import Block, num_groups
from mot_jax.nn.embedding import Embedding
from mot_jax.nn.norm import Norm
from mot_jax.nn.rows import Rows, enter, grouped_rows, leave, sequence_rows
from mot_jax.parallel.collectives import gather
from mot_jax.parallel.rules import local_shape

# "dots" keeps what products made; those of grouped weights are loops, and named instead.
REMAT = {
    "dots": jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names("grouped_matmul"),
    ),
    "full": None,
}


class Transformer(nnx.Module):
    """Tokens -> hidden states. Layers are named by absolute index; the final norm is untied with the other norms."""

    def __init__(self, model: Model, rngs: nnx.Rngs):
        self.model = model
        self.embedding = Embedding(model.vocab_size, model.dim, rngs)
        self.layers = nnx.Dict({str(i): Block(model, block, rngs) for i, block in enumerate(config.expand(model))})
        groups = num_groups(model) if "norm" in model.untied else None
        self.final_norm = Norm(model.dim, model.norm, model.norm_epsilon, groups)
        if not model.tied_head:
            self.head = Embedding(model.vocab_size, model.dim, rngs)

    def __call__(
        self,
        tokens: Int[Array, "B S"],
        modality_ids: Int[Array, "B S"],
        positions: Int[Array, "B S A"],
        valid: Bool[Array, "B S"],
        attend: Attend,
    ) -> Float[Array, "B S D"]:
        model = self.model
        if model.untied or any(block.untied for block in config.expand(model)):
            owner = jnp.asarray(config.group_of_modality(model), jnp.int32)
            rows = grouped_rows(owner[modality_ids], valid, num_groups(model))
        else:
            rows = sequence_rows()
        rates = rotary.frequencies(config.heads(model)[2], model.rope_theta, model.rope_scaling)
        rope = rotary.angles(positions, rates)
        x = enter(rows, self.embedding(tokens, compute_dtype(model)))
        x = self._layers(x, rows, rope, attend)
        return leave(rows, self.final_norm(x, rows), tokens.shape[0])

    def _layers(self, x: Array, rows: Rows, rope: tuple[Array, Array], attend: Attend) -> Array:
        blocks = config.expand(self.model)
        layers = [nnx.split(self.layers[str(i)]) for i in range(len(blocks))]

        def run(graph, layer, params, x):
            return nnx.merge(graph, params)(x, rows, rope, attend, layer)

        if self.model.remat != "none":
            run = jax.checkpoint(run, policy=REMAT[self.model.remat], static_argnums=(0, 1))
        if not self.model.scan_layers:
            for index, (graph, params) in enumerate(layers):
                x = run(graph, index, params, x)
            return x
        for _, equal in itertools.groupby(range(len(blocks)), key=lambda i: blocks[i]):
            first, *rest = equal
            graph = layers[first][0]
            stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(layers[i][1] for i in (first, *rest)))
            # One body serves the whole run, so attention cannot be told which layer it is in.
            x, _ = jax.lax.scan(lambda x, params, graph=graph: (run(graph, None, params, x), None), x, stacked)
        return x


def compute_dtype(model: Model) -> jnp.dtype:
    """The dtype of activations; `auto` is bfloat16 wherever the default device is not a CPU."""
    if model.dtype != "auto":
        return jnp.dtype(model.dtype)
    return jnp.dtype("float32" if jax.default_backend() == "cpu" else "bfloat16")


@functools.lru_cache(maxsize=64)
def _split(model: Model):
    return nnx.split(nnx.eval_shape(lambda: Transformer(model, nnx.Rngs(params=0))))


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


def merge(model: Model, params: dict) -> Transformer:
    """The module with these parameters.

    Raises:
      ValueError: a parameter is missing, unknown, or of another shape (NNX itself checks none of it).
    """
    path_of = lambda path: "/".join(str(key.key) for key in path)  # noqa: E731
    given = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple))
    expected = {
        path_of(path): local_shape(leaf.shape, names)
        for (path, leaf), names in zip(jax.tree_util.tree_leaves_with_path(abstract(model)), axes, strict=True)
    }
    if missing := sorted(expected.keys() - given.keys()):
        raise ValueError(f"parameter {missing[0]} is missing ({len(missing)} in all)")
    if unknown := sorted(given.keys() - expected.keys()):
        raise ValueError(f"parameter {unknown[0]} is not part of this model ({len(unknown)} in all)")
    for name, shape in expected.items():
        if np.shape(given[name]) != shape:
            raise ValueError(f"parameter {name} has shape {np.shape(given[name])}, expected {shape}")
    return nnx.merge(_split(model)[0], params)


def apply(model: Model, params: dict, batch: Batch) -> tuple[Float[Array, "B S D"], dict]:
    """Hidden states of a packed batch after the final norm, and auxiliary statistics of the layers.

    Never logits: objectives own the head. Inside a manual mesh `params` and `batch` are one device's shards.
    """

    batch = jax.tree.map(jnp.asarray, batch)

    def attend(layer: int | None, q: Array, k: Array, v: Array) -> Array:
        return causal_in_document(q, k, v, batch.segment_ids)

    hidden = merge(model, params)(batch.tokens, batch.modality_ids, batch.positions, batch.segment_ids > 0, attend)
    return hidden, {}


def forward(
    model: Model,
    params: dict,
    tokens: Int[Array, "B S"],
    modality_ids: Int[Array, "B S"],
    positions: Int[Array, "B S A"],
    valid: Bool[Array, "B S"],
    attend: Attend,
) -> Float[Array, "B S D"]:
    """Hidden states with attention supplied by the caller, layer by layer; a cache lives in `attend`."""
    unrolled = dataclasses.replace(model, scan_layers=False, remat="none")
    return merge(unrolled, params)(tokens, modality_ids, positions, valid, attend)


def head_table(model: Model, params: dict, dtype: jnp.dtype) -> Float[Array, "V D"]:
    """The output table in the compute dtype; inside a manual mesh this device's part of the vocabulary."""
    table = params["embedding" if model.tied_head else "head"]["table"]
    return gather(table.astype(dtype), "fsdp", 1)


def logits(model: Model, params: dict, hidden: Float[Array, "... D"]) -> Float[Array, "... V"]:
    """float32 logits over the whole vocabulary; for the few positions being sampled, not for training."""
    table = head_table(model, params, hidden.dtype)
    return jnp.einsum("...d,vd->...v", hidden, table, preferred_element_type=jnp.float32)
