"""Checkpoints and metrics under every failure that a disk can have."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from anyformer.errors import TrainingError
from anyformer.training.state import Checkpoints, Counters, Metrics, held, read_metrics, write_directory


def content(text: str) -> Callable[[Path], None]:
    """Something for a checkpoint to hold."""
    return lambda directory: (directory / "weights").write_text(text) and None


def names(directory: Path) -> list[str]:
    """What lies in a directory."""
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_checkpoints_are_kept_and_come_back(tmp_path: Path) -> None:
    """Counters return as they were, old ones go, and nothing else lies about."""
    saved = Checkpoints(tmp_path, keep=2)
    for step in (10, 20, 30):
        saved.save(Counters(step=step, tokens=step * 8, elapsed=0.5), content(str(step)))
    found = saved.newest_whole(pytest.fail)
    assert found == (tmp_path / "checkpoints/step-00000030", Counters(30, 240, 0.5))
    assert names(tmp_path / "checkpoints") == ["step-00000020", "step-00000030"]


@pytest.mark.parametrize("name", ["weights", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path: Path, name: str, damage: str) -> None:
    """Whatever file of it and however damaged: it is never loaded, and never silently passed over."""
    saved = Checkpoints(tmp_path)
    saved.save(Counters(step=10), content("good weights"))
    newest = saved.save(Counters(step=20), content("good weights"))
    file = newest / name
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(whole[:-5] if damage == "cut" else whole.replace(b"o", b"0", 1).replace(b"2", b"3", 1))
    told: list[str] = []
    assert saved.newest_whole(told.append) == (tmp_path / "checkpoints/step-00000010", Counters(step=10))
    assert len(told) == 1 and "step-00000020 is damaged" in told[0] and "the one before" in told[0]


def test_without_a_whole_checkpoint_there_is_none(tmp_path: Path) -> None:
    """A run then begins from step 0."""
    saved = Checkpoints(tmp_path)
    assert saved.newest_whole(pytest.fail) is None
    (saved.save(Counters(step=10), content("x")) / "weights").unlink()
    told: list[str] = []
    assert saved.newest_whole(told.append) is None and len(told) == 1


def test_a_step_can_be_saved_again_over_a_damaged_one(tmp_path: Path) -> None:
    """After going back, the run reaches the damaged one's step once more."""
    saved = Checkpoints(tmp_path)
    path = saved.save(Counters(step=10), content("old"))
    (path / "weights").write_text("damaged")
    saved.save(Counters(step=10), content("new"))
    assert saved.newest_whole(pytest.fail) == (path, Counters(step=10))
    assert (path / "weights").read_text() == "new"


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    """Half a checkpoint may be as large as a whole one, and none of its step need ever be saved again."""
    saved = Checkpoints(tmp_path)
    path = saved.save(Counters(step=10), content("first"))
    (saved.directory / ".step-00000013.partial").mkdir()
    (saved.directory / ".step-00000013.partial" / "weights").write_text("half")
    saved.tidy()
    assert [each.name for each in saved.directory.iterdir()] == [path.name]
    assert saved.newest_whole(pytest.fail) == (path, Counters(step=10))


def test_a_run_is_one_process_s_own(tmp_path: Path) -> None:
    """Until that one is done with it, however it ends."""
    with held(tmp_path):
        with pytest.raises(TrainingError, match="is being trained by another process"), held(tmp_path):
            pytest.fail("two have it")
        with held(tmp_path.parent):
            pass
    with pytest.raises(KeyError), held(tmp_path):
        raise KeyError
    with held(tmp_path):
        pass


def calls_during_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int | None) -> int:
    """Save a second checkpoint while the `fail_at`-th call that touches the disk fails as on a full one."""
    saved = Checkpoints(tmp_path)
    saved.save(Counters(step=10), content("first"))
    calls = 0

    def counted(real: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted(os.fsync))
        patch.setattr(Path, "mkdir", counted(Path.mkdir))
        patch.setattr(Path, "rename", counted(Path.rename))
        patch.setattr(Path, "write_text", counted(Path.write_text))
        if fail_at is None:
            saved.save(Counters(step=20), content("second"))
        else:
            with pytest.raises(OSError, match="No space left"):
                saved.save(Counters(step=20), content("second"))
    return calls


def test_a_disk_that_fills_up_at_any_moment_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every single write, sync and rename of a save fails in turn; what is found afterwards is whole."""
    total = calls_during_a_save(tmp_path / "all", monkeypatch, None)
    assert total >= 8
    for fail_at in range(1, total + 1):
        run = tmp_path / str(fail_at)
        calls_during_a_save(run, monkeypatch, fail_at)
        found = Checkpoints(run).newest_whole(pytest.fail)
        assert found is not None
        path, counters = found
        assert (path / "weights").read_text() == {10: "first", 20: "second"}[counters.step]
        assert Checkpoints(run).paths()[-1].name == "step-00000010"


def test_a_directory_that_failed_leaves_nothing_behind(tmp_path: Path) -> None:
    """The next try finds no leftovers, and what stood there before still stands."""
    write_directory(tmp_path / "data", content("old"))

    def fails(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_directory(tmp_path / "data", fails)
    assert names(tmp_path) == ["data"] and (tmp_path / "data/weights").read_text() == "old"


@pytest.mark.parametrize("tail", [b"", b'{"step": 5, "lo', b'{"step": 5, "loss": 1.0}', b"\x00\x00\x00"])
def test_metrics_are_cut_back_to_a_step_and_a_torn_line_goes(tmp_path: Path, tail: bytes) -> None:
    """Rows beyond the step and a line without its end are dropped; new rows follow on."""
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(b'{"step": %d, "loss": 1.0}\n' % step for step in range(1, 5)) + tail)
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4]
    metrics = Metrics(path)
    metrics.cut_back(4 if tail else 2)
    with metrics:
        metrics.write({"step": 99})
    assert [row["step"] for row in read_metrics(path)] == ([1, 2, 3, 4, 99] if tail else [1, 2, 99])


def test_metrics_start_without_a_file(tmp_path: Path) -> None:
    """The first step of a run."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.cut_back(0)
    with metrics:
        metrics.write({"step": 1})
        metrics.sync()
    assert read_metrics(metrics.path) == [{"step": 1}]
