"""Where a run may be written: refused before any slow work."""

import os

import pytest
from etils import epath

from mot_jax.config import Run
from mot_jax.errors import UserError
from mot_jax.training.run_directory import check_directory


@pytest.mark.parametrize("resume", ["never", "auto"])
def test_a_protected_directory_is_refused(tmp_path, monkeypatch, resume):
    monkeypatch.setattr(os, "access", lambda place, mode: place != str(tmp_path))  # root may write anywhere
    for directory in (tmp_path, tmp_path / "new" / "run"):
        with pytest.raises(UserError, match=f"^--run_dir: {tmp_path} cannot be written to$"):
            check_directory(epath.Path(directory), resume, Run())


def test_new_and_remote_directories_are_possible(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_directory(epath.Path("runs/a"), "never", Run()) is False
    assert check_directory(epath.Path(tmp_path), "auto", Run()) is False
    assert list(tmp_path.iterdir()) == []
