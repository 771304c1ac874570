"""What follows from a model's fields: its layers in full, the groups that own weights, and their pools of experts."""

import dataclasses
from collections.abc import Mapping

from mot_jax.config.experts import ExpertChoice, FeedForward, TokenChoice
from mot_jax.config.frozen import FrozenMapping
from mot_jax.config.memory import Memory
from mot_jax.config.model import Block, Model


def heads(model: Model) -> tuple[int, int, int]:
    """(query heads, key/value heads, head dimension)."""
    kv_heads = model.num_kv_heads or model.num_heads
    return model.num_heads, kv_heads, model.head_dim or model.dim // model.num_heads


def default_ffn_dim(dim: int) -> int:
    """SwiGLU width with the parameters of a 4D feed-forward: 8/3 D rounded up to a multiple of 256."""
    return -(-int(8 * dim / 3) // 256) * 256


def expand(model: Model) -> tuple[Block, ...]:
    """The plan as one fully specified block a layer."""
    plan = model.plan if model.plan is not None else ((model.num_layers, (Block(),)),)
    layers = [block for repeat, blocks in plan for _ in range(repeat) for block in blocks]

    def feed_forward(index: int, block: Block):
        given = model.feed_forward if block.feed_forward is None else block.feed_forward
        if model.memory is None or index not in model.memory.layers:
            return given
        if model.memory.modalities is None:
            return model.memory
        groups = group_names(model) if model.modalities else ()
        others = given if isinstance(given, Mapping) else dict.fromkeys(groups, given)
        return FrozenMapping({**others, **dict.fromkeys(model.memory.modalities, model.memory)})

    return tuple(
        Block(
            untied=model.untied if block.untied is None else block.untied,
            ffn_dim=block.ffn_dim or model.ffn_dim or default_ffn_dim(model.dim),
            feed_forward=feed_forward(index, block),
            norm_order=block.norm_order or model.norm_order,
            depth=block.depth,
        )
        for index, block in enumerate(layers)
    )


def named(feed_forward: FeedForward | Mapping[str, FeedForward] | None) -> tuple[FeedForward | None, ...]:
    """The kinds that a block or a model names, by modality or one for all."""
    return tuple(feed_forward.values()) if isinstance(feed_forward, Mapping) else (feed_forward,)


def group_of_modality(model: Model) -> tuple[int, ...]:
    """For each modality the index of the group that owns its tokens; groups are numbered in order of appearance."""
    owners = [model.groups.get(name, name) for name in model.modalities]
    names = list(dict.fromkeys(owners))
    return tuple(names.index(owner) for owner in owners)


def group_names(model: Model) -> tuple[str, ...]:
    """A name for each group: the modality that owns it, or its number where a hash does."""
    owners = dict.fromkeys(model.groups.get(name, name) for name in model.modalities)
    return tuple(owners) if model.owner == "modality" else tuple(f"hash_{i}" for i in range(len(owners)))


@dataclasses.dataclass(frozen=True)
class Pool:
    """The experts among which one group's tokens are divided: `kind.stored` of a layer's stack, from `first` on."""

    name: str
    kind: FeedForward
    first: int


def pools(model: Model, block: Block) -> tuple[Pool, ...]:
    """The pools of a block of `expand(model)`: one a group where the feed-forward is untied, else one for all."""
    given = block.feed_forward
    if "feed_forward" not in block.untied:
        kinds = {"all": given}
    elif isinstance(given, Mapping):
        kinds = {name: given.get(name, FeedForward()) for name in group_names(model)}
    else:
        kinds = dict.fromkeys(group_names(model), given)
    first, found = 0, []
    for name, kind in kinds.items():
        found.append(Pool(name, kind, first))
        first += kind.stored
    return tuple(found)


def has_experts(model: Model, block: Block) -> bool:
    """Whether any of a block's pools is more than one SwiGLU, and not all are memories."""
    kinds = {type(pool.kind) for pool in pools(model, block)}
    return bool(kinds - {FeedForward}) and kinds != {Memory}


def has_memory(block: Block) -> bool:
    """Whether some tokens of a block of `expand(model)` read a memory."""
    return any(isinstance(kind, Memory) for kind in named(block.feed_forward))


def expert_dim(model: Model, block: Block) -> int:
    """The width of a block's experts; one for all, so that one grouped product serves them."""
    stored = (pool.kind for pool in pools(model, block) if pool.kind.stored)
    return next((kind.ffn_dim for kind in stored), None) or block.ffn_dim


def selects(model: Model) -> bool:
    """Whether routers compare the tokens of a block of rows, to choose among them or to balance experts over them."""

    def compares(kind: FeedForward) -> bool:
        if isinstance(kind, TokenChoice):
            return kind.capacity is not None or kind.balance_loss > 0 or kind.z_loss > 0
        return isinstance(kind, ExpertChoice)

    return any(
        (block.depth is not None and block.depth.selection == "batch")
        or any(compares(pool.kind) for pool in pools(model, block))
        for block in expand(model)
    )


def sees_future(model: Model) -> bool:
    """Whether training selects tokens by comparing them with later ones; then only auxiliary routers can generate."""
    return any(
        block.depth is not None or any(isinstance(pool.kind, ExpertChoice) for pool in pools(model, block))
        for block in expand(model)
    )
