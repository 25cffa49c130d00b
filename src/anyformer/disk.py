"""Files on disk that are there whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def aside_of(path: Path) -> Path:
    """Where a file or directory stands until it is whole: beside its place, under a name that begins with a dot."""
    return path.with_name(f".{path.name}.partial")


def write(path: Path, content: bytes) -> None:
    """Replace a file in one move."""
    aside = aside_of(path)
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        # Nothing that is half written takes up a disk that may be full.
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Replace a JSON file in one move."""
    write(path, (json.dumps(data, indent=2) + "\n").encode())


def sync(path: Path) -> None:
    """See a file, or what a directory lists, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def said(error: OSError) -> str:
    """What the system says of a failure, and of which file, as a person reads it."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def sha256(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
