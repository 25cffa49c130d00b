"""Files on disk that are there whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from anyformer.disk import aside_of, sha256, write, write_json


def test_json_is_replaced_in_one_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write leaves the old file as it was, and nothing half written beside it."""
    path = tmp_path / "run.json"
    write_json(path, {"steps": 1})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"steps": 2})
    assert json.loads(path.read_text()) == {"steps": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """What was there gives way, nothing stands aside any more, and its sum is that of its content."""
    path = tmp_path / "file"
    for content in (b"first", b"second, longer", b""):
        write(path, content)
        assert path.read_bytes() == content and [each.name for each in tmp_path.iterdir()] == ["file"]
        assert sha256(path) == hashlib.sha256(content).hexdigest()
    assert aside_of(path).parent == tmp_path and aside_of(path).name.startswith(".")
