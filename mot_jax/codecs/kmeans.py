"""Lloyd's k-means in NumPy, shared by the codecs whose codes are centroids."""

import numpy as np
from jaxtyping import Float, Int32


def fit(
    rows: Float[np.ndarray, "N D"], count: int, *, seed: int = 0, iterations: int = 20, sample: int = 40_000
) -> Float[np.ndarray, "K D"]:
    """K centroids of rows (Lloyd 1982), started from random rows; a centroid that owns nothing moves to an ill-fit row.

    Args:
      sample: at most this many rows, drawn at random, are looked at.
    """
    rng = np.random.default_rng(seed)
    if len(rows) > sample:
        rows = rows[rng.choice(len(rows), sample, replace=False)]
    centroids = rows[rng.choice(len(rows), count, replace=len(rows) < count)].copy()
    for _ in range(iterations):
        owner, distance = assign(rows, centroids)
        owned = np.bincount(owner, minlength=count)
        sums = np.stack([np.bincount(owner, weights=column, minlength=count) for column in rows.T], axis=1)
        alive = owned > 0
        centroids[alive] = (sums[alive] / owned[alive, None]).astype(rows.dtype)
        dead = np.flatnonzero(~alive)
        if len(dead):
            # Every third of the worst rows: neighbours in this order are often near-copies of one another.
            worst = np.argsort(-distance, kind="stable")[: 3 * len(dead) : 3]
            centroids[dead[: len(worst)]] = rows[worst]
    return centroids


def assign(
    rows: Float[np.ndarray, "N D"], centroids: Float[np.ndarray, "K D"], *, block: int = 16_384
) -> tuple[Int32[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """The nearest centroid of every row (the first of equals) and the squared distance to it."""
    owner = np.empty(len(rows), np.int32)
    distance = np.empty(len(rows), rows.dtype)
    half_norms = (centroids * centroids).sum(1) / 2
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        scores = half_norms - part @ centroids.T
        nearest = scores.argmin(1)
        owner[start : start + block] = nearest
        distance[start : start + block] = 2 * scores[np.arange(len(part)), nearest] + (part * part).sum(1)
    return owner, distance
