"""Text as byte-level BPE: trained here, or any `tokenizer.json` of the Hugging Face `tokenizers` library."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from etils import epath

from mot_jax.codecs.protocol import Codec
from mot_jax.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"


class BytePairText(Codec, kind="byte_pair"):
    """Strings <-> a tokenizer's own ids, unchanged, so that a pretrained embedding fits them."""

    def __init__(self, tokenizer: "Tokenizer"):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        # The largest id rather than the number of entries: pretrained vocabularies may have holes.
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "BytePairText":
        """Learns a vocabulary of at most `size` ids, 256 of them the bytes, so that any string can be encoded.

        Byte-level BPE as in GPT-2 (Radford et al. 2019, section 2.2).
        """
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

        if size < 256:
            raise DataError(f"byte_pair: {size} codes cannot hold the 256 bytes")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_file(cls, path: str) -> "BytePairText":
        """A tokenizer.json that the user brings; raises DataError where it cannot be read as one."""
        from tokenizers import Tokenizer

        path = epath.Path(path)
        if not path.exists():
            raise DataError(f"{path}: no such tokenizer file")
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path}: not a tokenizer.json ({error})") from error
        return cls(tokenizer)

    def encode(self, value: str) -> np.ndarray:
        return self.encode_many([value])[0]

    def encode_many(self, values: Sequence[str]) -> list[np.ndarray]:
        """Many strings at once, on all cores. No special tokens are added."""
        for value in values:
            if not isinstance(value, str):
                raise DataError(f"byte_pair: expected a string, got {type(value).__name__}")
        encodings = self.tokenizer.encode_batch_fast(list(values), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(self, codes: np.ndarray) -> str:
        codes = np.asarray(codes)
        if codes.size and (codes.min() < 0 or codes.max() >= self.size):
            raise DataError(f"byte_pair: codes {codes.min()}..{codes.max()} go outside 0..{self.size - 1}")
        return self.tokenizer.decode(codes.tolist(), skip_special_tokens=False)

    def show(self, codes: np.ndarray) -> str:
        return self.decode(codes)

    def save(self, directory: epath.Path) -> None:
        (epath.Path(directory) / FILE).write_text(self.tokenizer.to_str(pretty=True), encoding="utf-8")

    @classmethod
    def load(cls, directory: epath.Path) -> "BytePairText":
        return cls.from_file(epath.Path(directory) / FILE)
