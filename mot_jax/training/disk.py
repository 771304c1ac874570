"""A disk that is full, read-only or gone, said in one line."""

import contextlib
import errno
import os
from collections.abc import Iterator

from etils import epath

from mot_jax.errors import UserError

OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


@contextlib.contextmanager
def disk_errors(directory: epath.Path) -> Iterator[None]:
    """Raises what a disk refuses as a UserError; whatever is written in place of something is written beside it first.

    Args:
      directory: named where the system does not name a file.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_DISKS:
            raise
        where = os.fspath(error.filename or directory)
        raise UserError(f"{where}: {error.strerror}; checkpoints that were complete are as they were") from error
