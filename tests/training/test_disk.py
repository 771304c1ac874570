"""What a disk refuses, in one line."""

import errno
import os

import pytest
from etils import epath

from mot_jax.errors import UserError
from mot_jax.training.disk import disk_errors


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk_is_named():
    with (
        pytest.raises(UserError, match=r"^runs/a: No space left on device; checkpoints that were complete are as they"),
        disk_errors(epath.Path("runs/a")),
        open("/dev/full", "w", buffering=1) as file,
    ):
        file.write("a line\n")


def test_a_file_is_named_where_the_system_names_one(tmp_path):
    with pytest.raises(UserError, match=f"^{tmp_path}/a: Read-only file system; "), disk_errors(epath.Path("runs/a")):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{tmp_path}/a")


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError), disk_errors(epath.Path("runs/a")):
        (tmp_path / "none").read_text()
