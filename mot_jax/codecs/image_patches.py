"""Pictures of one size as a grid of square patches, each the nearest entry of a codebook."""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32, UInt8

from mot_jax.codecs import kmeans, storage
from mot_jax.codecs.protocol import Codec
from mot_jax.errors import DataError

BLANK = 0  # the code of a patch of background


class ImagePatches(Codec, kind="image_patches"):
    """uint8 pictures [h, w] or [h, w, 3] <-> one code a patch, rows from the top, left to right.

    Pictures are mostly background: code 0 is a patch of it, black or another grey, and the other codes are fitted to
    the rest.
    """

    def __init__(self, codebook: UInt8[np.ndarray, "K D"], *, height: int, width: int, channels: int, patch_size: int):
        """`codebook` holds patches flattened row by row, D = patch_size * patch_size * channels."""
        check_geometry(height, width, channels, patch_size)
        if codebook.shape[1] != patch_size * patch_size * channels:
            raise DataError(f"image_patches: codebook {codebook.shape} does not hold {patch_size} px patches")
        self.codebook, self.patch_size = codebook, patch_size
        self.height, self.width, self.channels = height, width, channels
        self.size = len(codebook)
        self.span_length = (height // patch_size) * (width // patch_size)

    @classmethod
    def fit(
        cls, images: np.ndarray, *, patch_size: int, codes: int, seed: int = 0, background: int = 0
    ) -> "ImagePatches":
        """A codebook of `codes` patches from pictures [N, h, w] or [N, h, w, 3] on a background of that grey level."""
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
            raise DataError(f"image_patches: expected uint8 [n, h, w] or [n, h, w, 3], got {_describe(images)}")
        if codes < 2:
            raise DataError(f"image_patches: {codes} codes; expected the blank and at least one more")
        height, width, channels = images.shape[1], images.shape[2], images.shape[3] if images.ndim == 4 else 1
        check_geometry(height, width, channels, patch_size)
        patches = cut(images, patch_size).reshape(-1, patch_size * patch_size * channels)
        patches = patches[(patches != background).any(1)]
        if not len(patches):
            raise DataError("image_patches: every picture is blank, nothing to fit a codebook to")
        centroids = kmeans.fit(patches.astype(np.float32), codes - 1, seed=seed)
        # Whole grey levels, so that a decoded picture consists of codebook entries and encodes to itself.
        blank = np.full((1, patches.shape[1]), background, np.uint8)
        codebook = np.concatenate([blank, np.rint(centroids).astype(np.uint8)])
        return cls(codebook, height=height, width=width, channels=channels, patch_size=patch_size)

    def encode(self, value: Any) -> Int32[np.ndarray, "C"]:
        return self.encode_many(np.asarray(value)[None])[0]

    def encode_many(self, images: np.ndarray) -> Int32[np.ndarray, "N C"]:
        """Many pictures [N, h, w] or [N, h, w, 3] at once; raises DataError unless uint8 of this codec's size."""
        expected = (self.height, self.width) + ((self.channels,) if self.channels > 1 else ())
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise DataError(f"image_patches: expected a uint8 picture {expected}, got {_describe(images[0])}")
        patches = cut(images, self.patch_size)
        dtype = _exact_dtype(patches.shape[-1])
        owner, _ = kmeans.assign(patches.reshape(-1, patches.shape[-1]).astype(dtype), self.codebook.astype(dtype))
        return owner.reshape(len(images), self.span_length)

    def decode(self, codes: np.ndarray) -> UInt8[np.ndarray, "h w *channels"]:
        return self.decode_many(np.asarray(codes)[None])[0]

    def decode_many(self, codes: np.ndarray) -> UInt8[np.ndarray, "N h w *channels"]:
        """Many pictures at once, codes [N, C]; raises DataError for another number of codes or a code out of range."""
        codes = storage.check_codes(self.kind, codes, self.size)
        if codes.shape[1:] != (self.span_length,):
            raise DataError(f"image_patches: {codes.shape[1:]} codes a picture, expected {self.span_length}")
        return join(self.codebook[codes], self.height, self.width, self.channels)

    def show(self, codes: np.ndarray) -> np.ndarray:
        return self.decode(codes)

    def save(self, directory: epath.PathLike) -> None:
        settings = {name: getattr(self, name) for name in ("height", "width", "channels", "patch_size")}
        storage.save(directory, settings, self.codebook)

    @classmethod
    def load(cls, directory: epath.PathLike) -> "ImagePatches":
        settings, codebook = storage.load(directory)
        return cls(codebook, **settings)


def check_geometry(height: int, width: int, channels: int, patch_size: int) -> None:
    """Raises DataError unless patches of that size tile a grey or colour picture."""
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise DataError(f"image_patches: patches of {patch_size} px do not tile a picture of {height} x {width}")
    if channels not in (1, 3):
        raise DataError(f"image_patches: {channels} channels; expected grey (1) or colour (3)")


def cut(images: UInt8[np.ndarray, "N h w *channels"], patch_size: int) -> UInt8[np.ndarray, "N C D"]:
    """Pictures -> their patches, flattened."""
    n, h, w, channels, p = *images.shape[:3], images[0, 0, 0].size, patch_size
    grid = images.reshape(n, h // p, p, w // p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(n, (h // p) * (w // p), p * p * channels)


def join(patches: UInt8[np.ndarray, "N C D"], h: int, w: int, channels: int) -> UInt8[np.ndarray, "N h w *channels"]:
    """The inverse of `cut`."""
    n, p = len(patches), round((patches.shape[2] // channels) ** 0.5)
    images = patches.reshape(n, h // p, w // p, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(n, h, w) if channels == 1 else images.reshape(n, h, w, channels)


def _exact_dtype(patch_values: int) -> type[np.floating]:
    # Squared distances of whole grey levels are whole numbers: float32 holds them exactly up to 2**24.
    return np.float32 if patch_values * 255**2 < 2**24 else np.float64


def _describe(value: np.ndarray) -> str:
    return f"{value.dtype} {value.shape}"
