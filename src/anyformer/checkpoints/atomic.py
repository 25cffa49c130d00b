"""Writing files so that they are there whole or not at all: aside, synced to the disk, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

from safetensors import SafetensorError

from anyformer.disk import sync
from anyformer.errors import CheckpointError

_MARK = ".saving-"


@contextmanager
def staged(directory: Path, size: int = 0) -> Iterator[Path]:
    """A fresh directory to write into; when the block ends well its files take the place of those in `directory`.

    A new directory appears in one rename. In one that exists, each file is replaced by a rename, and what else lies
    there stays. Where the block fails nothing has changed; `CheckpointError` if the disk is what failed, or has no room
    for so many bytes (`size`).
    """
    exists = directory.is_dir()
    if directory.exists() and not exists:
        raise CheckpointError(f"{directory} is a file; name a directory to save into")
    home, prefix = (directory, _MARK) if exists else (directory.parent, f".{directory.name}{_MARK}")
    stage = None
    try:
        home.mkdir(parents=True, exist_ok=True)
        for left_over in _left_over(home, prefix):
            shutil.rmtree(left_over, ignore_errors=True)
        _must_have_room(home, size)
        stage = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
        yield stage
        written = [*stage.rglob("*"), stage]
        files = sorted(path for path in written if path.is_file())
        for path in files:
            # safetensors makes files that nobody but their owner may read.
            path.chmod(0o666 & ~_umask())
        for path in written:
            sync(path)
        if exists:
            for path in files:
                target = directory / path.relative_to(stage)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
            sync(directory)
        else:
            stage.chmod(0o777 & ~_umask())
            stage.rename(directory)
            sync(home)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{directory} cannot be written: {reason}; nothing there was changed") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def staged_file(path: Path, size: int = 0) -> Iterator[Path]:
    """A path beside `path` to write to; when the block ends well, what stands there takes its place in one rename.

    Where the block fails nothing has changed; `CheckpointError` if the disk is what failed, or has no room for so many
    bytes (`size`).
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a directory; name a file to save into")
    prefix = f".{path.name}{_MARK}"
    aside = path.with_name(f"{prefix}{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in _left_over(path.parent, prefix):
            left_over.unlink()
        _must_have_room(path.parent, size)
        yield aside
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}; it was not changed") from error
    finally:
        if aside.exists():
            aside.unlink()


def _left_over(directory: Path, prefix: str) -> Iterator[Path]:
    """What a save to the same place left there when it was killed."""
    return directory.glob(f"{escape(prefix)}*")


def _must_have_room(directory: Path, size: int) -> None:
    free = shutil.disk_usage(directory).free
    if size > free:
        raise OSError(errno.ENOSPC, f"it takes {size / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are free there")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
