"""Memory layers: product keys that look rows up in a large table, in place of a layer's feed-forward."""

import dataclasses
import fractions
from typing import Literal

from mot_jax.config.experts import FeedForward
from mot_jax.config.numbers import check_least
from mot_jax.errors import ConfigError

LANES = 128  # a table's row is stored as [width / 128, 128] where it can be
MOST_KEYS = 46_340  # whose square an int32 still holds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory(FeedForward):
    """Memory+ (arXiv 2412.09764, section 3) in the layers named; with `gated = False` the plain one.

    Each head's query takes the `top_k` best of num_keys^2 keys, which are pairs of two halves' sub-keys
    (arXiv 1907.05242, section 3.1), and the softmax of their scores weighs rows of a table of num_keys^2 values. Where
    the feed-forward is untied each group has its own queries, keys and gates; the tables are everyone's.
    """

    layers: tuple[int, ...] = ()
    modalities: tuple[str, ...] | None = None  # whose tokens it serves, with one set of queries, keys and gates
    num_keys: int = 128  # sub-keys of a half
    heads: int = 4
    top_k: int = 32  # a head
    key_dim: int | None = None  # of a head's query, both halves; None: half of value_dim
    value_dim: int | None = None  # None: Model.dim
    gated: bool = True  # Memory+: W_out (y * silu(W_gate x)); else y itself
    qk_norm: bool = True
    shared: bool = True  # one table for all layers; else one a layer
    dtype: Literal["float32", "bfloat16"] = "float32"  # as the tables are stored; bfloat16 is rounded stochastically

    @property
    def stored(self) -> int:
        """No experts."""
        return 0

    @property
    def active(self) -> fractions.Fraction:
        return fractions.Fraction(0)

    @property
    def num_values(self) -> int:
        """Rows of a table."""
        return self.num_keys**2

    @property
    def reads(self) -> int:
        """Rows that a token reads in a layer."""
        return self.heads * self.top_k

    def table_of(self, layer: int) -> str:
        """The name of the table that a layer reads."""
        return "shared" if self.shared else str(layer)


def value_dim(memory: Memory, dim: int) -> int:
    return memory.value_dim or dim


def key_dim(memory: Memory, dim: int) -> int:
    return memory.key_dim or value_dim(memory, dim) // 2


def table_shape(memory: Memory, dim: int) -> tuple[int, int, int]:
    """[rows, width / 128, 128], which a TPU can read by row in any dtype; [rows, 1, width] of another width."""
    width = value_dim(memory, dim)
    lanes = width if width % LANES else LANES
    return memory.num_values, width // lanes, lanes


def check_memory(memory: Memory, dim: int, num_layers: int) -> None:
    """Raises ConfigError for sizes that cannot go together."""
    if memory.ffn_dim is not None:
        raise ConfigError(f"Memory.ffn_dim: a memory has none, got {memory.ffn_dim}; its width is Memory.value_dim")
    for name in ("num_keys", "heads", "top_k", "key_dim", "value_dim"):
        check_least(f"Memory.{name}", getattr(memory, name), 1)
    if not memory.layers:
        raise ConfigError("Memory.layers: expected the layers that have one, as in (3, 11, 19); got none")
    for layer in memory.layers:
        if not 0 <= layer < num_layers:
            raise ConfigError(f"Memory.layers: expected numbers from 0 to {num_layers - 1}, got {layer}")
    if memory.modalities == ():
        raise ConfigError("Memory.modalities: expected the modalities that it serves, or None for all; got none")
    if len(set(memory.layers)) < len(memory.layers):
        raise ConfigError(f"Memory.layers: {memory.layers} names a layer twice")
    if memory.num_keys > MOST_KEYS:
        raise ConfigError(
            f"Memory.num_keys: {memory.num_keys} sub-keys a half make more values than an int32 row can name; "
            f"expected at most {MOST_KEYS}"
        )
    if memory.top_k > memory.num_values:
        raise ConfigError(
            f"Memory.top_k: {memory.top_k} is more than the {memory.num_values} keys of Memory.num_keys = "
            f"{memory.num_keys}"
        )
    if (width := key_dim(memory, dim)) % 2 or not width:
        given = "" if memory.key_dim else f", half of the value_dim {value_dim(memory, dim)},"
        raise ConfigError(f"Memory.key_dim: {width}{given} is not even; a key has two halves")
    if not memory.gated and value_dim(memory, dim) != dim:
        raise ConfigError(
            f"Memory.value_dim: {memory.value_dim} differs from Model.dim = {dim}; expected Memory.gated = True, whose "
            "projection brings values back to the model's width"
        )
