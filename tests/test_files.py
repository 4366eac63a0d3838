"""atomic_write(): the old file or the whole new one, and nothing else."""

import errno
import os

import pytest

from unit_fast.errors import UnitFastError
from unit_fast.files import atomic_write


def test_writes_and_replaces(tmp_path):
    target = tmp_path / "file"
    assert atomic_write(target, lambda path: path.write_text("one")) == target
    atomic_write(target, lambda path: path.write_text("two"))
    assert target.read_text() == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_has_the_mode_of_any_other_file(tmp_path):
    ordinary = tmp_path / "ordinary"
    ordinary.write_text("")
    atomic_write(tmp_path / "file", lambda path: path.write_text(""))
    assert (tmp_path / "file").stat().st_mode == ordinary.stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_interrupts_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "file"
    target.write_text("old")

    def fail(path):
        path.write_text("half")
        raise error

    with pytest.raises(error):
        atomic_write(target, fail)
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    def full(path):
        path.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UnitFastError, match=r"cannot write .*No space left on device; nothing was changed"):
        atomic_write(tmp_path / "file", full)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["missing/file", ""], ids=["missing folder", "a folder"])
def test_impossible_places_are_refused(tmp_path, place):
    with pytest.raises(UnitFastError, match="cannot write"):
        atomic_write(tmp_path / place, lambda path: path.write_text("x"))


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write(tmp_path / "link", lambda path: path.write_text("new"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_pipe_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UnitFastError, match="device or a pipe"):
        atomic_write(tmp_path / "pipe", lambda path: path.write_text("x"))
    assert not (tmp_path / "pipe").is_file()
