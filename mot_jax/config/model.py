"""A transformer as frozen data: sizes, which weights are whose, and what its layers are."""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from mot_jax.config.experts import Depth, FeedForward
from mot_jax.config.frozen import FrozenMapping
from mot_jax.config.memory import Memory

Part = Literal["attention", "feed_forward", "norm"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Llama-3 frequency scaling: wavelengths beyond the original context are stretched by `factor`."""

    factor: float = 32.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Block:
    """One layer of the plan. A field left at None takes the model's setting."""

    untied: tuple[Part, ...] | None = None
    ffn_dim: int | None = None
    feed_forward: FeedForward | Mapping[str, FeedForward] | None = None
    norm_order: Literal["pre", "post"] | None = None
    depth: Depth | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A transformer. `untied` names the parts whose weights each group owns: none is dense, all three is MoT.

    `feed_forward` divides it into experts: each group's own where it is untied, else one set for all tokens; by
    modality as in `{"text": @ExpertChoice()}`, where the others keep one SwiGLU.
    """

    modalities: tuple[str, ...] | None = None  # text first; None: the data's
    vocab_size: int | None = None  # None: the data's, rounded up to a multiple of 128
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None  # None: num_heads
    head_dim: int | None = None  # None: dim / num_heads
    ffn_dim: int | None = None  # None: 8/3 dim, rounded up to a multiple of 256
    feed_forward: FeedForward | Mapping[str, FeedForward] = FeedForward()
    memory: Memory | None = None  # in place of the feed-forward of the layers it names
    plan: tuple[tuple[int, tuple[Block, ...]], ...] | None = (
        None  # (repeat, blocks) runs; None: num_layers plain blocks
    )
    untied: tuple[Part, ...] = ()
    groups: Mapping[str, str] = FrozenMapping()  # modality -> the modality whose weights it shares
    owner: Literal["modality", "hash"] = "modality"  # hash: as many groups, by a hash of the token's id; a control
    selection_groups: int = 1  # blocks of rows of a microbatch inside which experts and depth select their tokens
    auxiliary_routers: bool = False  # what expert choice and depth need to generate; usually a second stage
    norm: Literal["rms", "layer"] = "rms"
    norm_order: Literal["pre", "post"] = "post"
    norm_epsilon: float = 1e-5
    qk_norm: Literal["none", "rms", "layer"] = "rms"
    qkv_bias: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tied_head: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # compute; auto: bfloat16 on accelerators
    remat: Literal["none", "dots", "full"] = "none"
    scan_layers: bool = False  # compiles one body for each run of equal blocks that follow one another
