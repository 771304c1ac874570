"""One trainer a run directory: a second one, started by mistake or after a launcher was killed, is refused."""

import contextlib
from collections.abc import Iterator

import filelock
import jax
from etils import epath

from mot_jax.errors import UserError
from mot_jax.parallel.processes import gather

FILE = ".lock"


@contextlib.contextmanager
def run_lock(directory: epath.Path) -> Iterator[None]:
    """Held by the first process while it lasts, and freed by the system when that dies; local directories only.

    A directory that holds nothing else in the end is removed.

    Raises:
      UserError: on every process, when another trainer holds it.
    """
    lock, free = None, True
    if jax.process_index() == 0 and "://" not in str(directory):
        with contextlib.suppress(OSError, NotImplementedError):  # file systems without locks
            directory.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(directory / FILE)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                free = False
    if not gather("lock", free)[0]:
        raise UserError(f"{directory}: another process is training in it; wait for it, or choose another --run_dir")
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
            with contextlib.suppress(OSError):
                if [path.name for path in directory.iterdir()] == [FILE]:
                    (directory / FILE).unlink()
                    directory.rmdir()
