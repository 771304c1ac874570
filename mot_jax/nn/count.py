"""Parameter counts from shapes alone: what is stored, and what one token meets, by part of the model and by group."""

import dataclasses
import math
from collections.abc import Iterator
from fractions import Fraction

import jax

from mot_jax.config import Model, expand, group_names, pools
from mot_jax.config.experts import ExpertChoice
from mot_jax.config.memory import value_dim
from mot_jax.nn.transformer import abstract, logical_axes

PARTS = ("embedding", "attention", "feed_forward", "memory", "depth", "norm", "head")
SHARED = "shared"  # the owner of what belongs to no group


def stored(model: Model) -> int:
    """Number of parameters of a resolved model."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract(model)))


def activated(model: Model) -> int:
    """Number of parameters of the model one token goes through, one of the group whose tokens meet most.

    This is the size the papers name models by; embedding and head count whole, and so does a layer that some tokens
    skip.
    """
    return max(sum(parts.values()) for parts in activated_by_part(model).values())


def stored_by_part(model: Model) -> dict[str, dict[str, int]]:
    """By owner, which is a group or `shared`, and by part; every parameter once."""
    found = {owner: dict.fromkeys(PARTS, 0) for owner in (*group_names(model), SHARED)}
    for leaf in _leaves(model):
        for owner, share in _owners(model, leaf).items():
            found[owner][leaf.part] += int(leaf.size * share)
    return found


def activated_by_part(model: Model) -> dict[str, dict[str, int]]:
    """By group and by part: what a token of the group goes through.

    Of experts as many as it meets on average, of a memory's table the values that it reads.
    """
    found = {}
    for group in group_names(model):
        parts = dict.fromkeys(PARTS, Fraction(0))
        for leaf in _leaves(model):
            parts[leaf.part] += leaf.size * _met(model, leaf, group)
        if model.memory is not None and _recalls(model, group):
            parts["memory"] += len(model.memory.layers) * model.memory.reads * value_dim(model.memory, model.dim)
        found[group] = {part: int(count) for part, count in parts.items()}
    return found


@dataclasses.dataclass(frozen=True)
class _Leaf:
    path: tuple[str, ...]
    size: int
    axes: tuple[str | None, ...]

    @property
    def part(self) -> str:
        inside = self.path[2] if self.path[0] == "layers" else self.path[0]
        return "norm" if inside.endswith("norm") else {"values": "memory"}.get(inside, inside)


def _leaves(model: Model) -> Iterator[_Leaf]:
    axes = jax.tree.leaves(logical_axes(model), is_leaf=lambda leaf: isinstance(leaf, tuple))
    for (path, leaf), names in zip(jax.tree_util.tree_leaves_with_path(abstract(model)), axes, strict=True):
        yield _Leaf(tuple(str(key.key) for key in path), math.prod(leaf.shape), names)


def _owners(model: Model, leaf: _Leaf) -> dict[str, Fraction]:
    """Whose a parameter is, by shares that make 1."""
    if leaf.path[0] == "layers" and {"expert", "group"} & set(leaf.axes):
        owned = pools(model, expand(model)[int(leaf.path[1])])
        if "expert" in leaf.axes:
            counts = {pool.name: pool.kind.stored for pool in owned}
        elif "auxiliary" in leaf.path:
            choosing = [pool.name for pool in owned if isinstance(pool.kind, ExpertChoice)]
            counts = dict.fromkeys(choosing if leaf.part == "feed_forward" else [SHARED], 1)
        else:
            counts = dict.fromkeys(group_names(model), 1)
        total = sum(counts.values())
        return {SHARED if name == "all" else name: Fraction(count, total) for name, count in counts.items()}
    if "group" in leaf.axes:  # the final norm
        names = group_names(model)
        return dict.fromkeys(names, Fraction(1, len(names)))
    served = model.memory.modalities or () if leaf.part == "memory" and "value_row" not in leaf.axes else ()
    return {served[0] if len(served) == 1 else SHARED: Fraction(1)}


def _met(model: Model, leaf: _Leaf, group: str) -> Fraction:
    """How much of a parameter a token of the group goes through."""
    if "value_row" in leaf.axes or (leaf.part == "memory" and not _recalls(model, group)):
        return Fraction(0)
    owners = _owners(model, leaf)
    share = owners.get(group, owners.get(SHARED, Fraction(0)))
    if "expert" in leaf.axes:
        owned = pools(model, expand(model)[int(leaf.path[1])])
        kind = next(pool.kind for pool in owned if pool.name in (group, "all"))
        return share * kind.active / kind.stored if kind.stored else Fraction(0)
    return Fraction(1) if SHARED in owners else share


def _recalls(model: Model, group: str) -> bool:
    return model.memory.modalities is None or group in model.memory.modalities
