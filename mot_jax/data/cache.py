"""Finds the data set of a config: the one it names, or its source's in the cache, prepared when missing."""

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable

import filelock
from etils import epath

from mot_jax.config import Data, Source
from mot_jax.data import artifacts
from mot_jax.data.dataset import open_dataset
from mot_jax.data.writer import temporary_prefix
from mot_jax.errors import DataError

Report = Callable[[str, float], None]


def cache_directory(data: Data) -> epath.Path:
    """Where `data.source` lies or would lie: a name of the source's class and of everything that shapes it."""
    root = data.cache_dir or os.environ.get("MOT_JAX_CACHE") or "~/.cache/mot_jax"
    shaped = {"format": artifacts.FORMAT, **data.source.fingerprint()}
    digest = hashlib.sha256(json.dumps(shaped, sort_keys=True, default=str).encode()).hexdigest()
    return epath.Path(os.path.expanduser(root)) / f"{type(data.source).__name__}-{digest[:12]}"


def ensure_dataset(data: Data, report: Report) -> str:
    """The directory of a whole data set: `data.path`, or the cached one of `data.source`.

    A cached data set that is missing or damaged is prepared anew; a process that finds another one preparing waits.

    Args:
      report: `report(what, fraction)` shows the progress of a preparation.

    Raises:
      DataError: `data.path` is no data set, or the cache cannot be written.
    """
    if data.path is not None:
        artifacts.read_manifest(data.path)
        return data.path
    directory = cache_directory(data)
    try:
        open_dataset(directory, verify=data.verify)
    except DataError:
        _prepare_once(data.source, directory, data.verify, report)
    return os.fspath(directory)


def _prepare_once(source: Source, directory: epath.Path, verify: bool, report: Report) -> None:
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(os.fspath(directory.parent / f".{directory.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            report("waiting for another process that prepares the same data", 0.0)
            lock.acquire()
    except OSError as error:
        raise DataError(f"{directory.parent}: expected a cache that can be written to ({error.strerror})") from error
    try:
        _prepare_unless_whole(source, directory, verify, report)
    finally:
        lock.release()


def _prepare_unless_whole(source: Source, directory: epath.Path, verify: bool, report: Report) -> None:
    try:
        open_dataset(directory, verify=verify)
    except DataError as error:
        if directory.exists():
            logging.getLogger(__name__).warning("%s; preparing it again", error)
        _prepare(source, directory, report)


def _prepare(source: Source, directory: epath.Path, report: Report) -> None:
    """Prepares beside `directory` and renames; the caller holds the lock."""
    prefix = temporary_prefix(directory.name)
    for left_over in directory.parent.glob(f"{prefix}*"):
        left_over.rmtree()
    working = directory.with_name(f"{prefix}{uuid.uuid4().hex[:8]}")
    working.mkdir()
    try:
        made = working / directory.name
        source.prepare(os.fspath(made), report)
        open_dataset(made)
        if directory.exists():
            directory.rmtree()
        made.rename(directory)
    finally:
        working.rmtree()
