"""What can be said of a picture: its name, skin tones, subgroup and main colours, and its group at one of the ends."""

from mot_jax.data.pictures.names import GROUPS, Picture

NAMED = (
    "{group}: {name}",
    "a picture of {name}, from {group}",
    "{name}, one of {group}",
)
COLOURED = (
    "{group}, {subgroup}: {name} in {colours}",
    "mostly {colours}: {name}, from {group}",
    "{name} in {colours}, {subgroup}, from {group}",
    "something {colours} from {group}",
    "{group}, {subgroup}, in {colours}",
)


def captions(picture: Picture, colours: str, phrasings: tuple[str, ...] = NAMED + COLOURED) -> tuple[str, ...]:
    """The picture in each phrasing."""
    name = picture.name.replace(": ", ", ")
    if picture.tones:
        name += f" with {' and '.join(dict.fromkeys(picture.tones))} skin"
    words = {"group": picture.group, "subgroup": picture.subgroup, "name": name, "colours": colours}
    return tuple(phrasing.format(**words) for phrasing in phrasings)


def group_in(text: str) -> int | None:
    """The index in GROUPS of the group that a text begins with, else of the one it ends with; None without either."""
    for names in (text.strip().startswith, text.strip().endswith):
        for index, group in enumerate(GROUPS):
            if names(group):
                return index
    return None
