"""Three small real codecs of numbers: text, images of six codes, speech of any length."""

import numpy as np

from mot_jax.codecs.protocol import Codec


class Plain(Codec):
    """Numbers as they are; its settings are what it saves."""

    def __init__(self, size: int, span_length: int | None = None):
        self.size, self.span_length = size, span_length

    def encode(self, value):
        return np.asarray(value, np.int32)

    def decode(self, codes):
        return codes.tolist()

    def save(self, directory):
        (directory / "settings").mkdir()
        (directory / "settings" / "sizes.txt").write_text(f"{self.size} {self.span_length or 0}")

    @classmethod
    def load(cls, directory):
        size, span_length = map(int, (directory / "settings" / "sizes.txt").read_text().split())
        return cls(size, span_length or None)


class Text(Plain, kind="test_text"):
    pass


class Image(Plain, kind="test_image"):
    pass


class Speech(Plain, kind="test_speech"):
    pass
