"""Text as byte-level BPE: trained here, or any `tokenizer.json` of the Hugging Face `tokenizers` library."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from etils import epath

from mot_jax.codecs.protocol import Codec
from mot_jax.errors import DataError, nearest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, MARKERS = "tokenizer.json", "markers.json"


class BytePairText(Codec, kind="byte_pair"):
    """Strings <-> a tokenizer's own ids, unchanged, so that a pretrained embedding fits them.

    `pad`, `bos` and `eos` name tokens that the tokenizer already has for these; a vocabulary appends those left out.
    """

    def __init__(
        self, tokenizer: "Tokenizer", *, pad: str | None = None, bos: str | None = None, eos: str | None = None
    ):
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self._markers = {"pad": pad, "bos": bos, "eos": eos}
        self.pad_id, self.bos_id, self.eos_id = (self._marker_id(token) for token in (pad, bos, eos))
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
    def from_file(cls, path: epath.PathLike, **markers: str | None) -> "BytePairText":
        """A tokenizer.json that the user brings, with the names of its `pad`, `bos` and `eos` tokens, if any.

        Raises:
          DataError: it cannot be read as one, or lacks a token that was named.
        """
        from tokenizers import Tokenizer

        path = epath.Path(path)
        if not path.exists():
            raise DataError(f"{path}: no such tokenizer file")
        try:
            tokenizer = Tokenizer.from_str(path.read_text())
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{path}: not a tokenizer.json ({error})") from error
        return cls(tokenizer, **markers)

    def _marker_id(self, token: str | None) -> int | None:
        if token is None:
            return None
        found = self.tokenizer.token_to_id(token)
        if found is None:
            special = [added.content for added in self.tokenizer.get_added_tokens_decoder().values()]
            raise DataError(f"byte_pair: the tokenizer has no token {token!r}{nearest(token, special)}")
        return found

    def encode(self, value: Any) -> np.ndarray:
        return self.encode_many([value])[0]

    def encode_many(self, values: Sequence[Any]) -> list[np.ndarray]:
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

    def save(self, directory: epath.PathLike) -> None:
        directory = epath.Path(directory)
        (directory / TOKENIZER).write_text(self.tokenizer.to_str(pretty=True))
        (directory / MARKERS).write_text(json.dumps(self._markers, indent=2) + "\n")

    @classmethod
    def load(cls, directory: epath.PathLike) -> "BytePairText":
        directory = epath.Path(directory)
        try:
            markers = json.loads((directory / MARKERS).read_text())
        except (OSError, ValueError) as error:
            raise DataError(f"{directory}: not a saved codec ({error})") from error
        return cls.from_file(directory / TOKENIZER, **markers)
