"""Speech as units: k-means of stacked log-mel frames, 25 a second; back to sound by Griffin-Lim."""

from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int16, Int32, UInt8

from mot_jax.codecs import kmeans, storage
from mot_jax.codecs.mel import griffin_lim, invert_mel, mel_filters, power_spectrogram
from mot_jax.codecs.protocol import Codec
from mot_jax.errors import DataError

BANDS = 40
STACK = 2  # frames a unit
WINDOW = 1024  # samples
PEAK = 0.8  # loudness is no part of a unit: every waveform is scaled to this
SILENCE = 1e-2  # a peak below this is not scaled up any further
FLOOR = 1e-5  # added to mel power before the logarithm


class SpeechUnits(Codec, kind="speech_units"):
    """A mono waveform at `sample_rate` Hz (int16, or float in -1..1) <-> one unit every 40 ms."""

    def __init__(self, codebook: Float[np.ndarray, "K D"], *, sample_rate: int = 22_050):
        """`codebook` holds the log-mel values of two frames one after the other, D = 2 * 40."""
        if codebook.shape[1] != STACK * BANDS:
            raise DataError(f"speech_units: codebook {codebook.shape}, expected [K, {STACK * BANDS}]")
        self.codebook, self.sample_rate = codebook, sample_rate
        self.size = len(codebook)

    @classmethod
    def fit(
        cls, features: Float[np.ndarray, "N D"], *, codes: int, sample_rate: int = 22_050, seed: int = 0
    ) -> "SpeechUnits":
        """Units from the stacked frames of many waveforms, as `features` gives them."""
        return cls(kmeans.fit(features, codes, seed=seed), sample_rate=sample_rate)

    def encode(self, value: Any) -> Int32[np.ndarray, "U"]:
        return self.quantise(features(value, self.sample_rate))

    def quantise(self, rows: Float[np.ndarray, "N D"]) -> Int32[np.ndarray, "N"]:
        """The nearest unit of each stacked pair of frames."""
        return kmeans.assign(rows, self.codebook)[0]

    def decode(self, codes: np.ndarray) -> Int16[np.ndarray, "T"]:
        """T = 2 * hop * U samples: a waveform whose spectrogram is near the units' (the phase is estimated)."""
        codes = storage.check_codes(self.kind, codes, self.size)
        hop = hop_length(self.sample_rate)
        if not codes.size:
            return np.zeros(0, np.int16)
        mel_power = np.maximum(np.exp(self.codebook[codes].reshape(-1, BANDS).astype(np.float64)) - FLOOR, 0)
        power = invert_mel(mel_power, mel_filters(self.sample_rate, WINDOW, BANDS))
        samples = griffin_lim(np.sqrt(power), window=WINDOW, hop=hop)
        return np.rint(samples * (PEAK * 32767 / max(np.abs(samples).max(), 1e-9))).astype(np.int16)

    def show(self, codes: np.ndarray) -> UInt8[np.ndarray, "bands frames"]:
        """The units' log-mel spectrogram, low bands at the bottom."""
        codes = storage.check_codes(self.kind, codes, self.size)
        low, high = self.codebook.min(), self.codebook.max()
        frames = (self.codebook[codes].reshape(-1, BANDS) - low) / max(high - low, 1e-9)
        return np.rint(255 * frames.T[::-1]).astype(np.uint8)

    def save(self, directory: epath.PathLike) -> None:
        storage.save(directory, {"sample_rate": self.sample_rate}, self.codebook)

    @classmethod
    def load(cls, directory: epath.PathLike) -> "SpeechUnits":
        settings, codebook = storage.load(directory)
        return cls(codebook, **settings)


def hop_length(sample_rate: int) -> int:
    """Samples in 20 ms."""
    return sample_rate // 50


def features(waveform: np.ndarray, sample_rate: int) -> Float[np.ndarray, "units values"]:
    """Two neighbouring log-mel frames a row, 25 rows a second; the end is padded with silence to a whole row.

    Raises:
      DataError: not a mono int16 or float waveform.
    """
    waveform = np.asarray(waveform)
    if waveform.ndim != 1 or not (waveform.dtype == np.int16 or waveform.dtype.kind == "f"):
        raise DataError(f"speech_units: expected mono int16 or float, got {waveform.dtype} {waveform.shape}")
    hop = hop_length(sample_rate)
    samples = waveform.astype(np.float32) / (32768 if waveform.dtype == np.int16 else 1)
    samples = samples * (PEAK / max(np.abs(samples).max(initial=0), SILENCE))
    samples = np.pad(samples, (0, -len(samples) % (STACK * hop)))
    mel_power = power_spectrogram(samples, window=WINDOW, hop=hop) @ mel_filters(sample_rate, WINDOW, BANDS).T
    return np.log(mel_power + FLOOR).astype(np.float32).reshape(-1, STACK * BANDS)
