"""Image patches: round trips, the blank code, colour, saving, bad input."""

import json

import numpy as np
import pytest

from mot_jax.codecs import ImagePatches, codec_class
from mot_jax.codecs.image_patches import BLANK, cut, join
from mot_jax.errors import DataError


def pictures(rng, *shape) -> np.ndarray:
    """Smooth random pictures whose left third is blank."""
    images = rng.integers(0, 256, shape, dtype=np.uint8)
    images[:, :, : shape[2] // 3] = 0
    return images


@pytest.fixture(params=[(40, 12, 16), (40, 12, 16, 3)], ids=["grey", "colour"])
def images(request, rng):
    return pictures(rng, *request.param)


@pytest.fixture
def codec(images):
    return ImagePatches.fit(images, patch_size=4, codes=32)


def test_cutting_and_joining_are_inverse(images):
    patches = cut(images, 4)
    assert patches.shape[:2] == (40, 12)
    np.testing.assert_array_equal(patches[5, 6].reshape(4, 4, -1), images[5, 4:8, 8:12].reshape(4, 4, -1))
    np.testing.assert_array_equal(join(patches, 12, 16, images[0, 0, 0].size), images)


def test_sizes(codec, images):
    assert (codec.size, codec.span_length) == (32, 12)
    codes = codec.encode(images[0])
    assert codes.shape == (12,) and codes.dtype == np.int32
    assert codec.decode(codes).shape == images[0].shape and codec.decode(codes).dtype == np.uint8


def test_a_decoded_picture_encodes_to_itself(codec, images):
    decoded = codec.decode_many(codec.encode_many(images))
    np.testing.assert_array_equal(codec.decode_many(codec.encode_many(decoded)), decoded)
    np.testing.assert_array_equal(codec.encode_many(decoded), codec.encode_many(images))


def test_each_patch_gets_the_nearest_entry(codec, images):
    patches = cut(images[:4], 4).astype(np.float64)
    exact = ((patches[:, :, None] - codec.codebook.astype(np.float64)) ** 2).sum(3).argmin(2)
    np.testing.assert_array_equal(codec.encode_many(images[:4]), exact)


def test_blank_has_code_0_and_no_other_code_is_blank(codec, images):
    np.testing.assert_array_equal(codec.encode(np.zeros_like(images[0])), np.full(12, BLANK))
    assert not codec.decode(np.full(12, BLANK)).any()
    assert codec.codebook[1:].any(1).all()


def test_the_background_may_be_white(images):
    light = 255 - images
    codec = ImagePatches.fit(light, patch_size=4, codes=32, background=255)
    white = np.full_like(images[0], 255)
    np.testing.assert_array_equal(codec.encode(white), np.full(12, BLANK))
    np.testing.assert_array_equal(codec.decode(np.full(12, BLANK)), white)
    assert (codec.codebook[1:] != 255).any(1).all()
    dark = ImagePatches.fit(images, patch_size=4, codes=32)
    np.testing.assert_array_equal(codec.codebook[BLANK], 255 - dark.codebook[BLANK])
    with pytest.raises(DataError, match="every picture is blank"):
        ImagePatches.fit(np.full_like(images, 255), patch_size=4, codes=32, background=255)


def test_the_codebook_is_spent_on_what_is_not_blank(images):
    # 16 distinct inked patches fit 16 codes exactly, although blank ones are far more frequent.
    ink = images[:16, :4, 8:12]
    mostly_blank = np.zeros((200, *images.shape[1:]), np.uint8)
    mostly_blank[:16, :4, 4:8] = ink
    codec = ImagePatches.fit(mostly_blank, patch_size=4, codes=17)
    np.testing.assert_array_equal(codec.decode_many(codec.encode_many(mostly_blank)), mostly_blank)


def test_the_seed_decides(images):
    books = [ImagePatches.fit(images, patch_size=4, codes=32, seed=seed).codebook for seed in (5, 5, 6)]
    np.testing.assert_array_equal(books[0], books[1])
    assert not np.array_equal(books[0], books[2])


def test_saved_and_loaded_is_equal(codec, images, tmp_path):
    codec.save(tmp_path)
    loaded = codec_class("image_patches").load(tmp_path)
    assert (loaded.size, loaded.span_length) == (codec.size, codec.span_length)
    np.testing.assert_array_equal(loaded.show(loaded.encode(images[1])), codec.show(codec.encode(images[1])))


def test_bad_input_is_named(codec, images, tmp_path):
    with pytest.raises(DataError, match=r"expected a uint8 picture \(12, 16.*got uint8 \(8, 16"):
        codec.encode(images[0, :8])
    with pytest.raises(DataError, match="got float32"):
        codec.encode(images[0].astype(np.float32))
    with pytest.raises(DataError, match=r"\(11,\) codes a picture, expected 12"):
        codec.decode(np.zeros(11, np.int32))
    with pytest.raises(DataError, match=r"outside 0\.\.31"):
        codec.decode(np.full(12, 32))
    with pytest.raises(DataError, match="5 px do not tile a picture of 12 x 16"):
        ImagePatches.fit(images, patch_size=5, codes=32)
    with pytest.raises(DataError, match="every picture is blank"):
        ImagePatches.fit(np.zeros_like(images), patch_size=4, codes=32)
    with pytest.raises(DataError, match="at least one more"):
        ImagePatches.fit(images, patch_size=4, codes=1)
    with pytest.raises(DataError, match="not a saved codec"):
        ImagePatches.load(tmp_path)
    codec.save(tmp_path)
    settings = json.loads((tmp_path / "codec.json").read_text())
    (tmp_path / "codec.json").write_text(json.dumps(settings | {"patch_size": 2}))
    with pytest.raises(DataError, match="does not hold 2 px patches"):
        ImagePatches.load(tmp_path)
