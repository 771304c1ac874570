"""Which mesh axis each logical axis of a parameter is split over: one table, and what a config may change in it."""

import dataclasses
from collections.abc import Mapping

from mot_jax.config.frozen import FrozenMapping
from mot_jax.errors import ConfigError, nearest

BATCH_AXES = ("data", "fsdp", "expert")  # rows of a batch are split over all three
AXES = (*BATCH_AXES, "tensor")  # of the mesh, in its order

Rules = Mapping[str | None, str | None]


@dataclasses.dataclass(frozen=True)
class LogicalAxis:
    """What it is split over unless a config says otherwise, and which axes the computation can split it over.

    Over `in_place` ones each device computes with its part; over `gathered` ones the parameter is made whole, in the
    compute dtype, where it is used. `why`: what to say of the others.
    """

    mesh_axis: str | None
    in_place: tuple[str, ...] = ()
    gathered: tuple[str, ...] = ()
    why: str = ""


LOGICAL_AXES: dict[str, LogicalAxis] = {
    "embed": LogicalAxis("fsdp", gathered=AXES),
    "kv_heads": LogicalAxis("tensor", in_place=("tensor",), gathered=BATCH_AXES),
    "ffn": LogicalAxis("tensor", in_place=("tensor",), gathered=BATCH_AXES),
    "vocab": LogicalAxis("tensor", in_place=("tensor",), gathered=BATCH_AXES),
    # Of a layer's stack and of a memory's table: tokens travel, the parameter stays.
    "expert": LogicalAxis("expert", in_place=BATCH_AXES, why="devices of one tensor group have the same tokens"),
    "value_row": LogicalAxis("fsdp", in_place=BATCH_AXES, why="devices of one tensor group have the same tokens"),
    "value_column": LogicalAxis("tensor", in_place=("tensor",), why="a token's values are read where the token is"),
    "group": LogicalAxis(None, why="rows are sorted by group on each device, which needs the weights of all"),
    "norm": LogicalAxis(None, why="gains and biases are read whole"),
}

RULES: Rules = FrozenMapping({None: None, **{name: axis.mesh_axis for name, axis in LOGICAL_AXES.items()}})


def rules_with(changes: Mapping[str, str | None]) -> Rules:
    """The table with a config's changes.

    Raises:
      ConfigError: no such axis, or one that nothing can be computed with if split so.
    """
    for name, mesh_axis in changes.items():
        where = f"Parallel.rules[{name!r}]"
        if name not in LOGICAL_AXES:
            raise ConfigError(f"Parallel.rules: no logical axis {name!r}{nearest(name, LOGICAL_AXES)}")
        if mesh_axis is not None and mesh_axis not in AXES:
            raise ConfigError(f"{where}: no mesh axis {mesh_axis!r}{nearest(mesh_axis, AXES)}")
        axis = LOGICAL_AXES[name]
        allowed = (*axis.in_place, *axis.gathered)
        if mesh_axis is not None and mesh_axis not in allowed:
            expected = " or ".join(repr(one) for one in (*allowed, None))
            raise ConfigError(f"{where}: cannot be split over {mesh_axis!r}: {axis.why}; expected {expected}")
    return FrozenMapping({**RULES, **changes})


def split_in_place(rules: Rules, name: str | None) -> str | None:
    """The mesh axis along which each device computes with its own part of this logical axis, if any."""
    return rules[name] if name is not None and rules[name] in LOGICAL_AXES[name].in_place else None
