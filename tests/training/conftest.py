"""A small data set of captions and 8 px pictures, written with the real codecs."""

import numpy as np
import pytest

from mot_jax.codecs.byte_pair import BytePairText
from mot_jax.codecs.image_patches import ImagePatches
from mot_jax.data.dataset import DatasetWriter
from mot_jax.documents import Span

WORDS = ("dark", "light", "striped", "dotted")


def write_dataset(directory, seed: int = 0, documents: int = 200):
    """Captions and pictures in both orders, and captions alone; a tenth is held out."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (32, 8, 8)).astype(np.uint8)
    text = BytePairText.train([f"a {word} one" for word in WORDS], 300)
    image = ImagePatches.fit(images, patch_size=4, codes=16)
    with DatasetWriter(directory, {"text": text, "image": image}) as writer:
        for index in range(documents):
            caption = Span("text", text.encode(f"a {rng.choice(WORDS)} one"))
            picture = Span("image", image.encode(rng.choice(images)))
            document = ((caption, picture), (picture, caption), (caption,))[rng.integers(3)]
            writer.add("validation" if index % 10 == 0 else "train", document)
    return directory


@pytest.fixture(scope="session")
def dataset_directory(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "small")
