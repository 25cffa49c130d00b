"""Files, folders, globs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from anyformer.data import find_files
from anyformer.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder such as people have: text among other things."""
    for name in (
        "b.txt",
        "a.md",
        "sub/c.py",
        ".hidden/d.txt",
        "__pycache__/e.txt",
        "site-packages/f.py",
        "test/g.py",
        "h.jsonl",
        "i.parquet",
        "sub/j.txt.zst",
        "k.tar.gz",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x00\xff")
    (tmp_path / "empty.py").touch()
    return tmp_path


def names(paths: list[Path], folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in paths]


def test_a_folder_gives_its_text_files_in_a_fixed_order(folder: Path) -> None:
    """Binary, empty, hidden and generated files stay out; the order is that of the paths."""
    assert names(find_files(folder), folder) == [
        *("a.md", "b.txt", "h.jsonl", "i.parquet", "sub/c.py", "sub/j.txt.zst", "test/g.py")
    ]


def test_excluded_names_and_paths_stay_out_of_folders(folder: Path) -> None:
    """`exclude` matches names and paths inside a folder."""
    assert names(find_files(folder, exclude=["test", "sub/*.py", "*.zst", "[hi].*"]), folder) == ["a.md", "b.txt"]


def test_globs_and_files_come_in_the_order_named_and_once(folder: Path) -> None:
    """References keep their order, a glob sorts its matches, and nothing comes twice."""
    others = ["h.jsonl", "i.parquet", "sub/j.txt.zst"]
    found = find_files([str(folder / "b.txt"), str(folder / "**" / "*.py"), folder])
    assert names(found, folder) == ["b.txt", "empty.py", "site-packages/f.py", "sub/c.py", "test/g.py", "a.md", *others]


def test_a_file_named_outright_is_taken_whatever_its_name(tmp_path: Path) -> None:
    """Suffixes count only where a folder is searched."""
    (tmp_path / "notes").write_text("text")
    assert find_files(str(tmp_path / "notes")) == [tmp_path / "notes"]


@pytest.mark.parametrize("reference", ["missing.txt", "none/*.txt"])
def test_what_is_not_there_is_named(tmp_path: Path, reference: str) -> None:
    """A reference that stands for nothing is an error, not an empty data set."""
    with pytest.raises(DataError, match=f"nothing found at .*{reference.split('/')[0]}"):
        find_files(str(tmp_path / reference))


def test_what_can_be_read_only_once_or_not_at_all_is_no_file(tmp_path: Path) -> None:
    """A pipe would be waited for without an end; links may lead nowhere, or round in circles."""
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "astray.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "round.txt").symlink_to(tmp_path / "round.txt")
    (tmp_path / "up").symlink_to(tmp_path)
    with pytest.raises(DataError, match=r"pipe.txt is neither a file nor a folder"):
        find_files(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match=r"nothing found at .*\*.txt"):
        find_files(str(tmp_path / "*.txt"))
    text = tmp_path / "text.txt"
    text.write_text("text")
    assert find_files(str(tmp_path / "*.txt")) == find_files(tmp_path) == [text]


def test_a_folder_without_text_and_no_reference_at_all_are_errors(tmp_path: Path) -> None:
    """Both say what was looked for."""
    with pytest.raises(DataError, match="no text files in the folder"):
        find_files(tmp_path)
    with pytest.raises(DataError, match="no data was named"):
        find_files([])
