"""Spoken digits: espeak-ng's voices, with accents, rates and pitches drawn at random, and whole voices held out."""

import dataclasses
import importlib.util
import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int16

from mot_jax.data.digits.captions import WORDS
from mot_jax.errors import DataError

ACCENTS = ("en", "en-us", "en-us-nyc", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd")
# Of the variants that come with espeak-ng one of each speaker, without robots, whispers and the like.
_NAMES = """
Alex Alicia Andrea Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike Nguyen Reed RicishayMax
Storm adam anika announcer antonio aunty belinda benjamin boris caleb david ed edward f1 f2 f3 f4 f5 grandma grandpa
gustave ian iven john kaukovalta klatt klatt2 klatt3 klatt4 linda m1 m2 m3 m4 m5 m6 m7 m8 marcelo max michel miguel
norbert pablo paul pedro quincy rob robert sandro shelby steph travis victor zac
"""
VOICES = tuple(_NAMES.split())
HELD_OUT_VOICES = 12
RATES, PITCHES, PITCH_RANGES = (120, 210), (25, 76), (20, 80)  # words a minute; of espeak's 0..99
SPEEDS = (0.82, 1.22)  # of training utterances: resampled, so formants move too


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Utterances to be synthesised, U of them: which digit, which voice, and the synthesiser's requests."""

    digits: Int[np.ndarray, "U"]
    voices: tuple[str, ...]
    requests: tuple[tuple[str, str, int, int, int], ...]


def hold_out_voices(rng: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(training voices, held-out voices)."""
    held = set(rng.permutation(VOICES)[:HELD_OUT_VOICES].tolist())
    return tuple(v for v in VOICES if v not in held), tuple(v for v in VOICES if v in held)


def plan(voices: tuple[str, ...], repeats: int, rng: np.random.Generator) -> Plan:
    """Every digit `repeats` times by every voice, each time with another accent, rate and pitch; sorted by digit."""
    who = [(digit, voice) for digit in range(len(WORDS)) for voice in voices for _ in range(repeats)]
    draws = [rng.integers(low, high, len(who)) for low, high in (RATES, PITCHES, PITCH_RANGES)]
    accents = rng.integers(len(ACCENTS), size=len(who))
    requests = tuple(
        (WORDS[digit], f"{ACCENTS[accent]}+{voice}", int(rate), int(pitch), int(pitch_range))
        for (digit, voice), accent, rate, pitch, pitch_range in zip(who, accents, *draws, strict=True)
    )
    return Plan(np.array([digit for digit, _ in who]), tuple(voice for _, voice in who), requests)


def change_speeds(waveforms: Sequence[Int16[np.ndarray, "_"]], rng: np.random.Generator) -> list[np.ndarray]:
    """Each played faster or slower by a factor of its own (speed perturbation, Ko et al., Interspeech 2015).

    Without it a model learns the few training voices by heart, and the loss on voices that nobody heard rises.
    """
    factors = np.exp(rng.uniform(*np.log(SPEEDS), len(waveforms)))
    return [
        np.interp(np.arange(0, len(waveform) - 1, factor), np.arange(len(waveform)), waveform).astype(np.int16)
        for waveform, factor in zip(waveforms, factors, strict=True)
    ]


def find_espeak() -> tuple[str, str]:
    """(library, its data) of the installed espeakng_loader; raises DataError when there is none."""
    if importlib.util.find_spec("espeakng_loader") is None:
        raise DataError("the spoken digits need the package espeakng-loader: pip install 'mot_jax[digits]'")
    import espeakng_loader

    return espeakng_loader.get_library_path(), espeakng_loader.get_data_path()


def synthesise(
    espeak: tuple[str, str], requests: tuple[tuple[str, str, int, int, int], ...], seed: int
) -> tuple[list[Int16[np.ndarray, "_"]], int]:
    """The waveforms and their sample rate in Hz; the same requests and seed give the same samples.

    Args:
      espeak: as `find_espeak` gives it.

    Raises:
      DataError: espeak-ng lacks a voice, or fails.
    """
    library, data = espeak
    # The synthesiser takes an unknown variant for its plain voice and says nothing of it.
    known = {path.name for path in (pathlib.Path(data) / "voices" / "!v").iterdir()}
    for missing in sorted({voice.partition("+")[2] for _, voice, *_ in requests} - known):
        raise DataError(f"espeakng-loader has no voice variant {missing!r}; expected version 0.2 or later")
    job = {"library": library, "data": data, "seed": seed, "requests": requests}
    program = pathlib.Path(__file__).with_name("synthesizer.py")
    # -P: the program's folder must not hide other modules of the same names.
    done = subprocess.run([sys.executable, "-P", str(program)], input=json.dumps(job).encode(), capture_output=True)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise DataError(f"speech synthesis: {lines[-1]}")
    return _read(done.stdout, len(requests))


def _read(stream: bytes, count: int) -> tuple[list[Int16[np.ndarray, "_"]], int]:
    rate, place, waveforms = int(np.frombuffer(stream, "<i4", 1)[0]), 4, []
    for _ in range(count):
        samples = int(np.frombuffer(stream, "<i4", 1, place)[0])
        waveforms.append(np.frombuffer(stream, "<i2", samples, place + 4).astype(np.int16))
        place += 4 + 2 * samples
    return waveforms, rate
