"""Files, folders, globs; encodings; holding out."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.data import Document, Sources, find_files, hold_out, read_documents, read_text
from anyformer.data.sources import hold_out_last
from anyformer.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


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


def test_a_folder_without_text_and_no_reference_at_all_are_errors(tmp_path: Path) -> None:
    """Both say what was looked for."""
    with pytest.raises(DataError, match="no text files in the folder"):
        find_files(tmp_path)
    with pytest.raises(DataError, match="no data was named"):
        find_files([])


def test_bytes_that_are_not_utf_8_are_named_with_their_offset(tmp_path: Path) -> None:
    """File, byte, offset and the way out stand in one sentence; the stated encoding then reads it."""
    path = tmp_path / "old.txt"
    path.write_bytes(b"Cr\xe8me")
    with pytest.raises(DataError, match=r"old.txt is not utf-8: byte 0xe8 at offset 2 .*--encoding \(data.encoding\)"):
        read_text(path)
    assert read_text(path, ["latin-1"]) == "Crème"


def test_several_encodings_are_tried_in_turn_for_each_file(tmp_path: Path) -> None:
    """A folder of UTF-8 and Latin-1 files can be read, each as what it is."""
    (tmp_path / "new.txt").write_text("Crème", encoding="utf-8")
    (tmp_path / "old.txt").write_text("Crème", encoding="latin-1")
    documents = read_documents(find_files(tmp_path), ["utf-8", "latin-1"])
    assert [document.text for document in documents] == ["Crème", "Crème"]


def test_an_unknown_encoding_is_refused(tmp_path: Path) -> None:
    """Python's own complaint would name neither key nor way out."""
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match="no text encoding 'latin-9000'"):
        read_text(tmp_path / "a.txt", ["latin-9000"])


@pytest.mark.skipif(not SHARED.exists(), reason="needs the Gutenberg texts, which are not part of the repository")
def test_a_real_latin_1_book_is_refused_until_its_encoding_is_stated() -> None:
    """Shakespeare's Caesar, as distributed, is Latin-1."""
    book = SHARED / "gutenberg" / "shakespeare-caesar.txt"
    with pytest.raises(DataError, match=r"shakespeare-caesar.txt is not utf-8: byte 0x.. at offset \d+"):
        read_text(book)
    assert "The Tragedie of Julius Caesar" in read_text(book, ["latin-1"])


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Windows editors begin UTF-8 files with one."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfabc")
    assert read_text(tmp_path / "a.txt") == "abc"


def test_an_empty_file_named_outright_is_an_error(tmp_path: Path) -> None:
    """It was asked for, so it was not meant to be empty."""
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty.txt is empty"):
        list(read_documents(find_files(tmp_path / "empty.txt")))


def test_whole_documents_are_held_out_by_their_text_alone() -> None:
    """Order and names do not matter, copies stay together, and the share is about what was asked."""
    documents = [Document(str(i), f"text {i % 500}") for i in range(1000)]
    parted = list(hold_out(documents, 0.1, whole=True))
    chosen = {document.text for document in parted if document.split == "validation"}
    assert chosen.isdisjoint(document.text for document in parted if document.split == "train")
    assert {
        document.text for document in hold_out(reversed(documents), 0.1, whole=True) if document.split != "train"
    } == chosen
    assert 20 < len(chosen) < 90


def test_few_documents_each_give_their_end() -> None:
    """Cut at a line break, nothing lost; a document without one stays whole."""
    text = "".join(f"line {i}\n" for i in range(100))
    head, tail, short = hold_out([Document("a", text), Document("b", "one line")], 0.1, whole=False)
    assert head.text + tail.text == text and head.split == "train" and tail.split == "validation"
    assert head.text.endswith("\n") and 0.05 < len(tail.text) / len(text) <= 0.1
    assert short == Document("b", "one line")


def test_sources_give_the_same_documents_at_every_call(tmp_path: Path) -> None:
    """Twice over the files, for a tokenizer and for tokenising, are one and the same text; the manifest's facts tell a
    changed file."""
    for name in ("a.txt", "b.txt", "held.txt"):
        (tmp_path / name).write_text(f"{name} of text\n" * 40)
    given = Sources([tmp_path / "a.txt", tmp_path / "b.txt"], [tmp_path / "held.txt"])
    assert [document.split for document in given.documents()] == ["train", "train", "validation"]
    without = Sources(given.train)
    assert [document.split for document in without.documents()] == ["train", "validation"] * 2
    assert list(without.documents()) == list(without.documents())
    assert given.size == 40 * (14 + 14 + 17)
    before = given.facts()
    (tmp_path / "b.txt").write_text("another text")
    after = given.facts()
    assert before["files"][0] == after["files"][0] and before["files"][1] != after["files"][1]


def test_each_record_is_a_document_beside_the_texts(tmp_path: Path) -> None:
    """Texts and rows of texts mix; tables are texts until a column or another field is wanted of them."""
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.jsonl").write_text('{"text": "one", "id": 1}\n{"text": "two"}\n')
    (tmp_path / "c.tsv").write_text("x\ty\n")
    documents = list(Sources(find_files(tmp_path), held_out=0.0).documents())
    assert [document.text for document in documents] == ["plain", "one", "two", "x\ty\n"]
    assert documents[0].fields == {} and documents[1].fields == {"text": "one"}
    assert documents[2].name == f"{tmp_path / 'b.jsonl'}, line 2"
    pairs = Sources([tmp_path / "c.tsv"], held_out=0.0, fields=("source", "target"))
    assert next(pairs.documents()) == Document(
        f"{tmp_path / 'c.tsv'}, line 1", "", "train", {"source": "x", "target": "y"}
    )
    cells = Sources([tmp_path / "c.tsv"], held_out=0.0, columns={"text": 1})
    assert [document.text for document in cells.documents()] == ["y"]


def test_what_cannot_be_records_is_refused(tmp_path: Path) -> None:
    """Plain text where pairs are needed, a mapping of fields that nobody reads, a file without rows."""
    (tmp_path / "a.txt").write_text("plain")
    (tmp_path / "b.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"a.txt is plain text, and source and target are needed: give .jsonl"):
        list(Sources([tmp_path / "a.txt"], fields=("source", "target")).documents())
    with pytest.raises(
        DataError, match=r"data.columns says what 'targte' is called, which is not read here; source, tar"
    ):
        Sources([tmp_path / "a.txt"], fields=("source", "target"), columns={"targte": 1})
    with pytest.raises(DataError, match=r"b.jsonl is empty"):
        list(Sources([tmp_path / "b.jsonl"]).documents())


def test_records_are_held_out_whole_by_what_they_say(tmp_path: Path) -> None:
    """However few files they stand in; the order of their fields and their place do not matter."""
    rows = [{"source": f"{i % 500}", "target": "t"} for i in range(1000)]
    documents = [Document(str(i), "", "train", row) for i, row in enumerate(rows)]
    turned = [Document("", "", "train", dict(reversed(row.items()))) for row in reversed(rows)]
    chosen, again = (
        {each.fields["source"] for each in hold_out(given, 0.1, whole=False) if each.split == "validation"}
        for given in (documents, turned)
    )
    assert chosen == again and 20 < len(chosen) < 90
    kept = [each.fields["source"] for each in hold_out(documents, 0.1, whole=False) if each.split == "train"]
    assert chosen.isdisjoint(kept) and len(kept) + 2 * len(chosen) == 1000


@pytest.mark.parametrize("count", [1, 3, 9])
def test_the_last_documents_are_held_out(tmp_path: Path, count: int) -> None:
    """As many as said, in order; all of them is too many."""
    documents = [Document(str(i), f"{i}") for i in range(10)]
    parted = list(hold_out_last(documents, count))
    assert [each.text for each in parted] == [each.text for each in documents]
    assert [each.split for each in parted] == ["train"] * (10 - count) + ["validation"] * count
    with pytest.raises(DataError, match=r"the training data has 10 documents, so 10 cannot be held out"):
        list(hold_out_last(documents, 10))


def test_what_is_held_out_is_said(tmp_path: Path) -> None:
    """Files of their own, the last documents, whole ones, or the end of each."""
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    text, rows = [tmp_path / "a.txt"], [tmp_path / "b.jsonl"]
    assert Sources(text).parting() == "5% of every document, its end"
    assert Sources(rows).parting() == "5% of the documents, by a hash of what they say"
    assert Sources(rows, held_out=1).parting() == "the last 1 documents"
    assert [each.split for each in Sources(rows, held_out=1).documents()] == ["train", "validation"]
    assert Sources(rows, text).parting() == "files of their own"
