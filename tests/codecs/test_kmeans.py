"""k-means: nearest centroids, recovered clusters, no dead centroids, the same result for the same seed."""

import numpy as np

from mot_jax.codecs import kmeans


def test_assignment_is_the_nearest_in_float64(rng):
    rows, centroids = rng.normal(size=(700, 5)).astype(np.float32), rng.normal(size=(9, 5)).astype(np.float32)
    owner, distance = kmeans.assign(rows, centroids, block=64)
    exact = ((rows[:, None].astype(np.float64) - centroids) ** 2).sum(2)
    np.testing.assert_array_equal(owner, exact.argmin(1))
    np.testing.assert_allclose(distance, exact.min(1), atol=1e-4)


def test_separate_clusters_are_found(rng):
    centres = rng.permutation(np.arange(12) * 100.0)[:, None] + np.zeros((1, 3))
    rows = (np.repeat(centres, 50, axis=0) + rng.normal(size=(600, 3))).astype(np.float32)
    found = kmeans.fit(rows, 12, seed=1)
    np.testing.assert_allclose(np.sort(found[:, 0]), np.sort(centres[:, 0]), atol=1)


def test_no_centroid_is_left_dead(rng):
    # Random starts would nearly all be copies of the one frequent row.
    rows = np.concatenate([np.zeros((5000, 2)), rng.normal(size=(400, 2))]).astype(np.float32)
    owner, _ = kmeans.assign(rows, kmeans.fit(rows, 64, seed=0))
    assert len(np.unique(owner)) == 64


def test_the_seed_decides(rng):
    rows = rng.normal(size=(500, 4)).astype(np.float32)
    np.testing.assert_array_equal(kmeans.fit(rows, 8, seed=3), kmeans.fit(rows, 8, seed=3))
    assert not np.array_equal(kmeans.fit(rows, 8, seed=3), kmeans.fit(rows, 8, seed=4))
