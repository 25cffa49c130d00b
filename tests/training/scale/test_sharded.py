"""Checkpoints that many processes write together, when the disk fails them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from anyformer.training.scale.sharded import SHARDS, ShardedCheckpoints, write_shards
from anyformer.training.state import Counters


def test_a_part_that_cannot_be_written_leaves_nothing_behind(one_rank: None, tmp_path: Path) -> None:
    """The checkpoint before it is whole, and a disk that is full has the room of what was half written back."""
    saved = ShardedCheckpoints(tmp_path)
    whole = saved.save(Counters(step=10), lambda aside: write_shards(aside, {"model": {"weight": torch.ones(3)}}))

    def full(aside: Path) -> None:
        (aside / SHARDS / "half").write_bytes(bytes(1000))
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        saved.save(Counters(step=20), full)
    assert list(saved.directory.iterdir()) == [whole]
    assert saved.newest_whole(pytest.fail) == (whole, Counters(step=10))
