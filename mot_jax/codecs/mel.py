"""Short-time spectra, mel filters, and a waveform back from magnitudes, in NumPy."""

import functools

import numpy as np
from jaxtyping import Complex, Float


@functools.cache
def mel_filters(sample_rate: int, window: int, bands: int, low: float = 60.0, high: float = 7600.0) -> np.ndarray:
    """float32[bands, window // 2 + 1]: triangles evenly spaced on the mel scale, 2595 log10(1 + f / 700).

    The scale is O'Shaughnessy's (1987). `low` and `high` are the outer edges in Hz.
    """
    edges_mel = np.linspace(2595 * np.log10(1 + low / 700), 2595 * np.log10(1 + high / 700), bands + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    frequencies = np.fft.rfftfreq(window, 1 / sample_rate)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - left) / (centre - left)
    falling = (right - frequencies) / (right - centre)
    filters = np.maximum(np.minimum(rising, falling), 0).astype(np.float32)
    filters.flags.writeable = False  # shared by everyone who asks
    return filters


def power_spectrogram(samples: Float[np.ndarray, "T"], *, window: int, hop: int) -> Float[np.ndarray, "F K"]:
    """|spectrum|^2 of one Hann-windowed frame a whole hop, centred on the middle of its hop."""
    return np.abs(_spectra(_pad(samples, window, hop), window, hop)) ** 2


def invert_mel(
    mel_power: Float[np.ndarray, "F bands"], filters: Float[np.ndarray, "bands K"], *, iterations: int = 20
) -> Float[np.ndarray, "F K"]:
    """A power spectrogram that has these mel powers and is nowhere negative.

    The pseudo-inverse, clipped, then multiplicative least-squares updates (Lee and Seung 2001, theorem 1): clipping
    alone changes the bands, and with them a third of speech's units instead of a quarter.
    """
    filters = filters.astype(np.float64)
    power = np.maximum(mel_power @ np.linalg.pinv(filters).T, 1e-8)
    for _ in range(iterations):
        power *= (mel_power @ filters) / np.maximum(power @ filters.T @ filters, 1e-12)
    return power


def griffin_lim(
    magnitudes: Float[np.ndarray, "F K"], *, window: int, hop: int, iterations: int = 32
) -> Float[np.ndarray, "T"]:
    """T = F * hop samples whose magnitudes are near those given (Griffin and Lim 1984).

    With momentum 0.99 (Perraudin et al. 2013), from random phases that are always the same.
    """
    phases = np.exp(2j * np.pi * np.random.default_rng(0).random(magnitudes.shape))
    previous = np.zeros_like(phases)
    for _ in range(iterations):
        spectra = _spectra(_overlap_add(magnitudes * phases, window, hop), window, hop)
        ahead = spectra + 0.99 * (spectra - previous)
        phases = ahead / np.maximum(np.abs(ahead), 1e-12)
        previous = spectra
    left = (window - hop) // 2
    return _overlap_add(magnitudes * phases, window, hop)[left : left + len(magnitudes) * hop]


def _pad(samples: np.ndarray, window: int, hop: int) -> np.ndarray:
    return np.pad(samples, ((window - hop) // 2, window - hop - (window - hop) // 2))


def _hann(window: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)).astype(np.float32)


def _spectra(padded: np.ndarray, window: int, hop: int) -> Complex[np.ndarray, "F K"]:
    if len(padded) < window:
        return np.zeros((0, window // 2 + 1), np.complex64)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    return np.fft.rfft(frames * _hann(window), axis=1)


def _overlap_add(spectra: np.ndarray, window: int, hop: int) -> np.ndarray:
    """The waveform whose frames are nearest to the spectra's in the least-squares sense."""
    frames = np.fft.irfft(spectra, window, axis=1) * _hann(window)
    length = (len(frames) - 1) * hop + window
    samples, weights = np.zeros(length), np.zeros(length)
    for index, frame in enumerate(frames):
        samples[index * hop : index * hop + window] += frame
        weights[index * hop : index * hop + window] += _hann(window) ** 2
    return samples / np.maximum(weights, 1e-3)
