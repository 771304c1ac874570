"""What a checkpoint says of itself: every array's shape, dtype and checksum, and a checksum of what it says."""

import jax

from mot_jax.errors import CheckpointError
from mot_jax.training.checksum import checksums, json_checksum, path_name

FORMAT = 2
CHECKSUM = "checksum"


class Damaged(ValueError):
    """A checkpoint that is not what was saved; the text is one line."""


def describe(tree) -> dict[str, dict]:
    """The shape, dtype and checksum of every array, by name."""
    sums = checksums(tree)
    return {
        path_name(path): {"shape": list(leaf.shape), "dtype": str(leaf.dtype), CHECKSUM: sums[path_name(path)]}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def sealed(arrays: dict[str, dict], data_state: dict, meta: dict) -> dict:
    """What is stored as `meta`: what is said of arrays and data beside what the caller says, and a checksum of it."""
    content = {"format": FORMAT, "arrays": arrays, "data_checksum": json_checksum(data_state), **meta}
    return {**content, CHECKSUM: json_checksum(content)}


def opened(where: str, meta: dict) -> dict:
    """`meta` as it was sealed.

    Raises:
      Damaged: it is not what was sealed.
      CheckpointError: it is of another version's format.
    """
    content = dict(meta)
    if "format" in content and content["format"] != FORMAT and CHECKSUM not in content:
        raise CheckpointError(f"{where}: has format {content['format']}, expected {FORMAT}")
    if content.pop(CHECKSUM, None) != json_checksum(content):
        raise Damaged("meta differs from its checksum")
    if content["format"] != FORMAT:
        raise CheckpointError(f"{where}: has format {content['format']}, expected {FORMAT}")
    return content


def check_data(meta: dict, data_state: dict) -> None:
    """Raises Damaged where the data's state is not what was saved."""
    if json_checksum(data_state) != meta["data_checksum"]:
        raise Damaged("data differs from its checksum")


def check_arrays(meta: dict, item: str, tree) -> None:
    """Raises Damaged naming an array that is not what was saved."""
    found = checksums(tree).items()
    if wrong := [name for name, checksum in found if checksum != meta["arrays"][item][name][CHECKSUM]]:
        others = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise Damaged(f"{item}: {wrong[0]} differs from its checksum{others}")


def check_shapes(where: str, stored: dict[str, dict], tree) -> None:
    """Raises CheckpointError naming a parameter that only one side has, or that has another shape or kind of number."""
    expected = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for name, leaf in expected.items():
        if name not in stored:
            raise CheckpointError(f"{where}: has no parameter {name}")
        shape, dtype = tuple(stored[name]["shape"]), jax.numpy.dtype(stored[name]["dtype"])
        if shape != tuple(leaf.shape):
            raise CheckpointError(f"{where}: parameter {name} has shape {shape}, the model expects {tuple(leaf.shape)}")
        kinds = [jax.numpy.issubdtype(kind, jax.numpy.floating) for kind in (dtype, leaf.dtype)]
        if dtype != leaf.dtype and not all(kinds):
            raise CheckpointError(f"{where}: parameter {name} is {dtype}, the model expects {leaf.dtype}")
    if unknown := sorted(stored.keys() - expected.keys()):
        raise CheckpointError(f"{where}: parameter {unknown[0]} is not part of the model ({len(unknown)} in all)")
