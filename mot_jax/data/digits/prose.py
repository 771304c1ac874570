"""Plain English that comes with Python: its language reference's topics and the standard library's docstrings."""

import ast
import os
import pathlib
import re
import sysconfig
from collections.abc import Iterator

import numpy as np

from mot_jax.errors import DataError

LONGEST = 200  # characters of a passage; a single longer sentence stays whole
SHORTEST = 40
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "lib2to3"}


def load_passages() -> dict[str, list[str]]:
    """Passages of a few sentences by source document (a topic, or a file of the library); none occurs twice.

    Raises:
      DataError: this Python has neither (a stripped installation).
    """
    seen: set[str] = set()
    passages = {}
    for source, text in _sources():
        fresh = []
        for paragraph in _paragraphs(text):
            fresh += [passage for passage in _passages(paragraph) if not (passage in seen or seen.add(passage))]
        if fresh:
            passages[source] = fresh
    if sum(map(len, passages.values())) < 1000:
        raise DataError("this Python lacks the topics and docstrings of its library; the digits take prose from them")
    return passages


def hold_out(passages: dict[str, list[str]], fraction: float, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """(training passages, held-out passages), split by source document."""
    sources = list(passages)
    held = set(rng.permutation(len(sources))[: max(1, round(fraction * len(sources)))].tolist())
    split = ([], [])
    for index, source in enumerate(sources):
        split[index in held].extend(passages[source])
    return split


def _sources() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"topics/{name}", topics[name]
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    for directory, inner, files in os.walk(library):
        inner[:] = sorted(name for name in inner if name not in SKIPPED)
        for name in sorted(files):
            if name.endswith(".py"):
                path = pathlib.Path(directory, name)
                yield str(path.relative_to(library)), "\n\n".join(_docstrings(path))


def _docstrings(path: pathlib.Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, SyntaxError, ValueError):  # templates and samples that are no programs
        return []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented)]
    return [text for text in texts if text]


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs that read as sentences, in one line each: no code, grammar, tables or bare headings."""
    for block in re.split(r"\n\s*\n", text):
        paragraph = " ".join(block.split())
        letters = sum(character.isalpha() or character == " " for character in paragraph)
        if len(paragraph) >= SHORTEST and letters >= 0.85 * len(paragraph) and ">>>" not in paragraph:
            yield paragraph


def _passages(paragraph: str) -> Iterator[str]:
    """Neighbouring sentences, as many as fit into LONGEST characters; what is shorter than SHORTEST is left out."""
    passage = ""
    for sentence in re.split(r"(?<=[.!?:]) (?=[A-Z\"])", paragraph):
        if passage and len(passage) + 1 + len(sentence) > LONGEST:
            if len(passage) >= SHORTEST:
                yield passage
            passage = ""
        passage = f"{passage} {sentence}" if passage else sentence
    if len(passage) >= SHORTEST:
        yield passage
