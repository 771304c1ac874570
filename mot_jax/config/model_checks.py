"""Which numbers of a model go together."""

import dataclasses
from collections.abc import Mapping

from mot_jax.config.experts import check_depth, check_feed_forward
from mot_jax.config.memory import Memory, check_memory
from mot_jax.config.model import Block, Model, RopeScaling
from mot_jax.config.numbers import check_least, check_positive
from mot_jax.config.plan import expand, group_names, heads, named, pools
from mot_jax.errors import ConfigError, nearest


def resolve(model: Model, modalities: tuple[str, ...], vocab_size: int) -> Model:
    """Fills in what the data decides (modalities, vocabulary) and checks the whole.

    Raises:
      ConfigError: values that do not go together, named with what was expected.
    """
    if model.modalities is not None and model.modalities != modalities:
        raise ConfigError(f"Model.modalities: {model.modalities} differ from the data's {modalities}")
    if model.vocab_size is not None and model.vocab_size < vocab_size:
        raise ConfigError(f"Model.vocab_size: {model.vocab_size} is less than the data's {vocab_size} token ids")
    if odd := [name for name in modalities if "/" in name]:
        raise ConfigError(f"modality {odd[0]!r}: expected a name without '/', which parts the names of metrics")
    resolved = dataclasses.replace(
        model, modalities=modalities, vocab_size=model.vocab_size or -(-vocab_size // 128) * 128
    )
    check_model(resolved)
    return resolved


def check_model(model: Model) -> None:
    """Raises ConfigError where a model's numbers cannot go together; names too, once its modalities are known."""
    sizes = ("dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_dim", "vocab_size", "selection_groups")
    for field in sizes:
        check_least(f"Model.{field}", getattr(model, field), 1)
    for repeat, blocks in model.plan or ():
        check_least("Model.plan: a run's repeat", repeat, 1)
        for block in blocks:
            check_least("Block.ffn_dim", block.ffn_dim, 1)
            if block.depth is not None:
                check_depth("Block.depth", block.depth)
    for name, value in (("rope_theta", model.rope_theta), ("norm_epsilon", model.norm_epsilon)):
        check_positive(f"Model.{name}", value)
    if model.rope_scaling is not None:
        _check_rope_scaling(model.rope_scaling)
    if model.head_dim is None and model.dim % model.num_heads:
        raise ConfigError(f"Model.num_heads: {model.num_heads} heads do not divide Model.dim = {model.dim}")
    num_heads, kv_heads, head_dim = heads(model)
    if num_heads % kv_heads:
        raise ConfigError(f"Model.num_kv_heads: {kv_heads} do not divide Model.num_heads = {num_heads}")
    if head_dim % 2:
        raise ConfigError(f"Model.head_dim: {head_dim} is odd; rotary embedding needs pairs")
    if not expand(model):
        raise ConfigError("Model.plan: has no layers")
    _check_memory(model)
    for modality, owner in model.groups.items():
        for name in (modality, owner):
            if model.modalities is not None and name not in model.modalities:
                raise ConfigError(f"Model.groups: no modality {name!r}{nearest(name, model.modalities)}")
    for block in dict.fromkeys(expand(model)):
        _check_experts(model, block)


def _check_experts(model: Model, block: Block) -> None:
    given, name = block.feed_forward, "Model.feed_forward"
    for modality, kind in given.items() if isinstance(given, Mapping) else (("", given),):
        check_feed_forward(f"{name}[{modality!r}]" if modality else name, kind)
    if isinstance(given, Mapping) and "feed_forward" not in block.untied:
        raise ConfigError(f'{name}: experts by modality need "feed_forward" in untied, got untied = {block.untied}')
    if model.modalities is None:
        return
    if isinstance(given, Mapping):
        for modality in given:
            if modality not in (names := group_names(model)):
                owner = model.groups.get(modality)
                why = f"; it shares the weights of {owner!r}" if owner else nearest(modality, names)
                raise ConfigError(f"{name}: no group {modality!r} to own experts{why}")
    widths = {pool.name: pool.kind.ffn_dim or block.ffn_dim for pool in pools(model, block) if pool.kind.stored}
    if len(set(widths.values())) > 1:
        raise ConfigError(f"{name}: expected one ffn_dim for all experts of a layer, got {widths}")


def _check_memory(model: Model) -> None:
    plan = [block.feed_forward for _, blocks in model.plan or () for block in blocks]
    for given in (model.feed_forward, *plan):
        if any(isinstance(kind, Memory) for kind in named(given)):
            raise ConfigError("Model.feed_forward: got a Memory; expected it in Model.memory, with Memory.layers")
    if model.memory is None:
        return
    check_memory(model.memory, model.dim, len(expand(model)))
    if model.memory.modalities is not None:
        for layer in model.memory.layers:
            if "feed_forward" not in (untied := expand(model)[layer].untied):
                raise ConfigError(
                    'Memory.modalities: a memory of some modalities needs "feed_forward" in untied, '
                    f"got untied = {untied} in layer {layer}"
                )
    for name in model.memory.modalities or ():
        if model.modalities is not None and name not in (names := group_names(model)):
            raise ConfigError(f"Memory.modalities: no group {name!r}{nearest(name, names)}")


def _check_rope_scaling(scaling: RopeScaling) -> None:
    check_positive("RopeScaling.factor", scaling.factor)
    check_least("RopeScaling.original_length", scaling.original_length, 1)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    check_positive("RopeScaling.low_frequency_factor", low)
    check_positive("RopeScaling.high_frequency_factor", high)
    if low >= high:
        raise ConfigError(
            f"RopeScaling.low_frequency_factor: expected less than high_frequency_factor = {high}, got {low}"
        )
