"""Where and when a run began."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from anyformer.training.watching.circumstances import circumstances


def test_the_commit_is_that_of_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a word about changes; outside of a repository there is none, and everything else is there all the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = circumstances()
    assert "commit" not in found and {"began", "anyformer", "python", "system", "processor"} <= found.keys()
    try:
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.example"]
        subprocess.run([*git, "init", "-q"], check=True)
        (tmp_path / "file").write_text("one")
        subprocess.run([*git, "add", "file"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "one"], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("there is no git here")
    commit = circumstances()["commit"]
    assert len(commit) == 12 and int(commit, 16) >= 0
    (tmp_path / "file").write_text("two")
    assert circumstances()["commit"] == f"{commit} with changes"


def test_without_git_there_is_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is no reason not to train."""
    monkeypatch.setenv("PATH", "")
    assert "commit" not in circumstances()
