"""Saving is all or nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from anyformer.checkpoints.atomic import staged, staged_file
from anyformer.errors import CheckpointError


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): path.read_text() for path in sorted(directory.rglob("*")) if path.is_file()
    }


def test_a_new_directory_appears_whole(tmp_path: Path) -> None:
    """Nothing stands under the name until the block has ended; parents are made."""
    target = tmp_path / "deep" / "new"
    with staged(target) as stage:
        (stage / "a").write_text("1")
        (stage / "inner").mkdir()
        (stage / "inner" / "b").write_text("2")
        assert not target.exists()
    assert contents(target) == {"a": "1", "inner/b": "2"}
    assert [path.name for path in target.parent.iterdir()] == ["new"]


@pytest.mark.parametrize("exists", [False, True])
def test_whoever_may_read_new_files_may_read_these(tmp_path: Path, exists: bool) -> None:
    """The mode of what is written is that of any new file, however it was made."""
    if exists:
        (tmp_path / "m").mkdir()
    before = os.umask(0o027)
    try:
        with staged(tmp_path / "m") as stage:
            (stage / "a").write_text("a")
            (stage / "a").chmod(0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "m" / "a").stat().st_mode & 0o777 == 0o640


def test_files_are_replaced_and_others_stay(tmp_path: Path) -> None:
    """In a directory that exists, only what was written is replaced."""
    (tmp_path / "a").write_text("old")
    (tmp_path / "notes").write_text("mine")
    with staged(tmp_path) as stage:
        (stage / "a").write_text("new")
        assert (tmp_path / "a").read_text() == "old"
    assert contents(tmp_path) == {"a": "new", "notes": "mine"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_changes_nothing(tmp_path: Path, exists: bool) -> None:
    """Whatever goes wrong inside the block, the directory is as it was."""
    target = tmp_path / "target"
    if exists:
        target.mkdir()
        (target / "a").write_text("old")
    with pytest.raises(RuntimeError), staged(target) as stage:
        (stage / "a").write_text("new")
        raise RuntimeError
    assert (contents(target) == {"a": "old"}) if exists else not target.exists()
    assert not [path for path in tmp_path.iterdir() if path != target]


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """The disk's refusal is told with the directory, and leaves it alone."""
    with (
        pytest.raises(CheckpointError, match="x cannot be written: No space left on device; nothing there was changed"),
        staged(tmp_path / "x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_known_before_anything_is_written(tmp_path: Path) -> None:
    """With the figures, for directories and files alike."""
    for stage in (staged(tmp_path / "x", 1 << 60), staged_file(tmp_path / "y", 1 << 60)):
        with pytest.raises(CheckpointError, match=r"it takes 1,152,921,504\.61 GB, and .* GB are free there"), stage:
            pytest.fail("begun all the same")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_write_of_a_file_left_is_cleared(tmp_path: Path) -> None:
    """By the next to the same place, whatever characters its name has; the remains of others stay."""
    for name in (".[1].gguf.saving-7", ".other.gguf.saving-7"):
        (tmp_path / name).write_text("half")
    with staged_file(tmp_path / "[1].gguf") as aside:
        aside.write_text("whole")
    assert contents(tmp_path) == {"[1].gguf": "whole", ".other.gguf.saving-7": "half"}


def test_what_a_killed_save_left_is_cleared(tmp_path: Path) -> None:
    """The next save to the same place removes the remains of one that was killed."""
    (tmp_path / ".saving-dead").mkdir()
    (tmp_path / ".saving-dead" / "a").write_text("half")
    with staged(tmp_path) as stage:
        (stage / "a").write_text("1")
    assert contents(tmp_path) == {"a": "1"}


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    """A file of that name is not touched."""
    (tmp_path / "x").write_text("precious")
    with pytest.raises(CheckpointError, match="x is a file; name a directory"), staged(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "precious"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_killed_save_changes_nothing(tmp_path: Path) -> None:
    """A process that dies in the middle of a save leaves every file as it was, and the next save clears up after it."""
    (tmp_path / "a").write_text("old")
    child = os.fork()
    if child == 0:
        with staged(tmp_path) as stage:
            (stage / "a").write_text("new")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    with staged(tmp_path) as stage:
        (stage / "b").write_text("1")
    assert contents(tmp_path) == {"a": "old", "b": "1"}
