"""Speech units: timing, loudness, resynthesis, saving, bad input; the spectra beneath them."""

import numpy as np
import pytest

from mot_jax.codecs import SpeechUnits, codec_class
from mot_jax.codecs.mel import griffin_lim, invert_mel, mel_filters, power_spectrogram
from mot_jax.codecs.speech_units import BANDS, features
from mot_jax.errors import DataError

RATE = 22_050
UNIT = 882  # samples: 40 ms


def buzz(pitch: float, formant: float, seconds: float) -> np.ndarray:
    """A vowel-like int16 waveform: harmonics of `pitch`, strongest near `formant` (Hz)."""
    time = np.arange(int(seconds * RATE)) / RATE
    harmonics = np.arange(1, int(7000 / pitch))
    strengths = np.exp(-(((harmonics * pitch - formant) / 400) ** 2)) + 0.02
    wave = (strengths[:, None] * np.sin(2 * np.pi * harmonics[:, None] * pitch * time)).sum(0)
    return (wave / np.abs(wave).max() * 20_000).astype(np.int16)


@pytest.fixture(scope="module")
def waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    vowels = [(pitch, formant) for pitch in (110, 170) for formant in (400, 900, 1700, 2800)]
    return [np.concatenate([buzz(*vowels[i], 0.25) for i in rng.permutation(len(vowels))[:3]]) for _ in range(30)]


@pytest.fixture(scope="module")
def codec(waveforms) -> SpeechUnits:
    return SpeechUnits.fit(np.concatenate([features(w, RATE) for w in waveforms]), codes=12, sample_rate=RATE)


def test_25_units_a_second_rounded_up(codec):
    for samples, units in ((UNIT, 1), (UNIT + 1, 2), (10 * UNIT, 10), (1, 1), (0, 0)):
        codes = codec.encode(np.full(samples, 100, np.int16))
        assert codes.shape == (units,) and codes.dtype == np.int32


def test_loudness_and_type_do_not_matter(codec, waveforms):
    codes = codec.encode(waveforms[0])
    assert len(np.unique(codes)) > 3
    np.testing.assert_array_equal(codec.encode(waveforms[0].astype(np.float32) / 32768), codes)
    assert np.mean(codec.encode(waveforms[0] // 4) == codes) > 0.95  # int16 rounding


def test_different_sounds_have_different_units(codec):
    low, high = (codec.encode(buzz(140, formant, 0.4))[2:8] for formant in (400, 2800))
    assert not set(low) & set(high)


def test_resynthesis_has_the_right_length_and_mostly_the_same_units(codec, waveforms):
    same, total = 0, 0
    for waveform in waveforms[:8]:
        codes = codec.encode(waveform)
        spoken = codec.decode(codes)
        assert spoken.dtype == np.int16 and len(spoken) == UNIT * len(codes)
        same, total = same + np.sum(codec.encode(spoken) == codes), total + len(codes)
    assert same / total > 0.5  # chance is 1 in 12; real words are in test_digits.py
    assert codec.decode(np.zeros(0, np.int32)).shape == (0,)


def test_resynthesis_is_the_same_every_time(codec, waveforms):
    codes = codec.encode(waveforms[0])
    np.testing.assert_array_equal(codec.decode(codes), codec.decode(codes))


def test_shown_as_a_spectrogram_with_low_bands_below(codec):
    picture = codec.show(codec.encode(buzz(140, 400, 0.4)))
    assert picture.shape == (BANDS, 20) and picture.dtype == np.uint8
    assert picture[BANDS // 2 :, 4:16].mean() > picture[: BANDS // 2, 4:16].mean() + 20


def test_saved_and_loaded_is_equal(codec, waveforms, tmp_path):
    codec.save(tmp_path)
    loaded = codec_class("speech_units").load(tmp_path)
    assert (loaded.size, loaded.span_length, loaded.sample_rate) == (12, None, RATE)
    np.testing.assert_array_equal(loaded.encode(waveforms[3]), codec.encode(waveforms[3]))


def test_bad_input_is_named(codec):
    with pytest.raises(DataError, match=r"expected mono int16 or float, got int16 \(100, 2\)"):
        codec.encode(np.zeros((100, 2), np.int16))
    with pytest.raises(DataError, match="got uint8"):
        codec.encode(np.zeros(1000, np.uint8))
    with pytest.raises(DataError, match=r"outside 0\.\.11"):
        codec.decode(np.array([0, 12]))


def test_a_sine_lands_in_the_band_of_its_frequency():
    filters = mel_filters(RATE, 1024, BANDS)
    edges = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 7600 / 700), BANDS + 2)
    for frequency in (200, 1000, 5000):
        wave = np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE)
        band = (power_spectrogram(wave, window=1024, hop=441)[20] @ filters.T).argmax()
        expected = np.abs(edges[1:-1] - 2595 * np.log10(1 + frequency / 700)).argmin()
        assert abs(band - expected) <= 1


def test_a_frame_is_centred_on_its_hop():
    for hop in (0, 10, 19):
        click = np.zeros(20 * 441)
        click[hop * 441 + 220] = 1
        assert power_spectrogram(click, window=1024, hop=441).sum(1).argmax() == hop


def test_inverted_mel_powers_come_back(rng):
    filters = mel_filters(RATE, 1024, BANDS)
    mel_power = rng.exponential(size=(6, 513)) @ filters.T
    power = invert_mel(mel_power, filters)
    assert (power >= 0).all()
    np.testing.assert_allclose(power @ filters.T, mel_power, rtol=0.2)


def test_griffin_lim_finds_a_waveform_with_the_magnitudes():
    wave = buzz(140, 900, 0.4)[: 20 * 441].astype(np.float64)
    magnitudes = np.sqrt(power_spectrogram(wave, window=1024, hop=441))
    again = griffin_lim(magnitudes, window=1024, hop=441)
    assert again.shape == wave.shape
    found = np.sqrt(power_spectrogram(again, window=1024, hop=441))
    assert np.linalg.norm(found - magnitudes) < 0.2 * np.linalg.norm(magnitudes)
