"""How a layer's feed-forward is divided into experts, and which tokens a layer skips: frozen data, checked."""

import dataclasses
import fractions
import math
from typing import Literal

from mot_jax.config.numbers import check_least
from mot_jax.errors import ConfigError

LEAST_SHARE = 0.001  # shares are taken to thousandths


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForward:
    """One SwiGLU that every token of the group goes through. The subclasses divide it into experts."""

    ffn_dim: int | None = None  # of an expert; None: the block's

    @property
    def stored(self) -> int:
        """Experts that a group stores."""
        return 1

    @property
    def active(self) -> fractions.Fraction:
        """Experts that a token meets, on average; never more over a batch."""
        return fractions.Fraction(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertChoice(FeedForward):
    """Every expert takes its best tokens of the group (arXiv 2202.09368; by modality arXiv 2407.21770, section 2.2).

    Each of E experts takes k = n * capacity / E (rounded down) of the n real tokens of a block of rows, by
    sigmoid(x router), which also weighs its output. It sees future tokens: generation needs the auxiliary routers.
    """

    experts: int = 4
    capacity: float = 1.0
    noise: bool = False  # Gumbel noise on the scores, in training only; for upcycled experts, which start out equal

    @property
    def stored(self) -> int:
        return self.experts

    @property
    def active(self) -> fractions.Fraction:
        return exact(self.capacity)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenChoice(FeedForward):
    """Every token takes its `top_k` best experts by softmax (Switch, arXiv 2101.03961; top-2, arXiv 2403.07816).

    `shared` experts more take every token, unweighted (DeepSeekMoE, arXiv 2401.06066, eq. 9).
    """

    experts: int = 8
    top_k: int = 2
    softmax: Literal["before", "after"] = "after"  # the choice: over all experts, or over those chosen
    shared: int = 0
    balance_loss: float = 0.01
    z_loss: float = 0.0
    capacity: float | None = None  # an expert's most tokens, as a multiple of the mean; None drops no token

    @property
    def stored(self) -> int:
        return self.experts + self.shared

    @property
    def active(self) -> fractions.Fraction:
        return fractions.Fraction(self.top_k + self.shared)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AverageKey(FeedForward):
    """Every token takes the `top_k` experts whose mean gate column fits it best (Avg-K, arXiv 2305.13999, section 4.2).

    No router, no weight on the output, no balance loss.
    """

    experts: int = 16
    top_k: int = 4

    @property
    def stored(self) -> int:
        return self.experts

    @property
    def active(self) -> fractions.Fraction:
        return fractions.Fraction(self.top_k)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HashExperts(FeedForward):
    """A hash of the token's id names its expert (arXiv 2106.04426); another hash in every layer."""

    experts: int = 4

    @property
    def stored(self) -> int:
        return self.experts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Depth:
    """Mixture-of-depths: only the best `capacity` of the tokens go through the layer (arXiv 2404.02258).

    They are weighed by sigmoid(x router), and what skips the layer stays as it is. It sees future tokens: generation
    needs the auxiliary routers. `batch` selects among all rows of a block (arXiv 2407.21770, section 2.3) and then
    attends over them laid end to end, which costs as many times more as there are rows; it is there for comparison.
    """

    capacity: float = 0.25
    selection: Literal["row", "batch"] = "row"


def exact(share: float) -> fractions.Fraction:
    """The fraction someone meant who wrote it in decimals."""
    return fractions.Fraction(str(share)).limit_denominator(1000)


def check_feed_forward(name: str, kind: FeedForward) -> None:
    """Raises ConfigError for numbers that no router can work with; `name` says whose."""
    cls = type(kind).__name__
    where = f"{name}: {cls}"
    check_least(f"{where}.ffn_dim", kind.ffn_dim, 1)
    if not hasattr(kind, "experts"):
        return
    check_least(f"{where}.experts", kind.experts, 1)
    if isinstance(kind, ExpertChoice) and not LEAST_SHARE <= kind.capacity <= kind.experts:
        raise ConfigError(
            f"{where}.capacity: expected {LEAST_SHARE} to {kind.experts} (its experts), got {kind.capacity}"
        )
    if isinstance(kind, TokenChoice | AverageKey) and not 1 <= kind.top_k <= kind.experts:
        raise ConfigError(f"{where}.top_k: expected 1 to {kind.experts} (its experts), got {kind.top_k}")
    if isinstance(kind, TokenChoice):
        if kind.top_k == 1 and kind.softmax == "after" and kind.experts > 1:
            raise ConfigError(
                f'{where}.softmax: with top_k = 1 the softmax "after" the choice is always 1, and the router learns '
                'nothing from it; expected "before"'
            )
        for field in ("shared", "balance_loss", "z_loss"):
            check_least(f"{where}.{field}", getattr(kind, field), 0)
        if kind.capacity is not None and not LEAST_SHARE <= kind.capacity < math.inf:
            raise ConfigError(
                f"{where}.capacity: expected {LEAST_SHARE} or more, or None to drop no token, got {kind.capacity}"
            )


def check_depth(name: str, depth: Depth) -> None:
    """Raises ConfigError for a share that is none."""
    if not LEAST_SHARE <= depth.capacity <= 1:
        raise ConfigError(f"{name}: Depth.capacity: expected {LEAST_SHARE} to 1, got {depth.capacity}")
