"""Texts of stated encodings and records as documents; what of them is held out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data import Document, Sources, files, find_files, read_documents, read_text
from anyformer.data.documents import cut, hold_out_last
from anyformer.errors import DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"


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
    """Python's own complaint would name neither key nor way out; and some of its codecs give no text."""
    (tmp_path / "a.txt").write_text("a")
    for name in ("latin-9000", "base64", "rot13", ""):
        with pytest.raises(DataError, match=f"no text encoding '{name}'"):
            read_text(tmp_path / "a.txt", [name])


def test_what_begins_as_utf_16_is_taken_for_it(tmp_path: Path) -> None:
    """Any bytes are Latin-1, so to try that would train on every other character."""
    (tmp_path / "a.txt").write_text("Crème", encoding="utf-16")
    with pytest.raises(DataError, match=r"byte 0xff at offset 0 .*, such as utf-16"):
        read_text(tmp_path / "a.txt")
    assert read_text(tmp_path / "a.txt", ["utf-16"]) == "Crème"


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


def chosen_of(sources: Sources) -> set[str]:
    """What is held out whole, and nothing of it is trained on."""
    parted = list(sources.documents())
    chosen, others = ({each.text for each in parted if each.split == split} for split in ("validation", "train"))
    assert chosen.isdisjoint(others)
    return chosen


def test_of_many_texts_and_of_records_whole_ones_are_held_out(tmp_path: Path) -> None:
    """By what they say alone: order, names and kinds of files do not matter, copies stay together, and the share is
    about what was asked."""
    texts = [f"text {i % 500}" for i in range(1000)]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    files = find_files(tmp_path)
    chosen = chosen_of(Sources(files, held_out=0.1))
    assert chosen == chosen_of(Sources(files[::-1], held_out=0.1)) and 20 < len(chosen) < 90
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
    assert chosen == chosen_of(Sources([rows], held_out=0.1))


def test_pairs_are_held_out_however_their_fields_are_ordered(tmp_path: Path) -> None:
    """A pair is chosen by both of its sides, wherever they stand."""
    lines = [f'{{"source": "{i}", "target": "t"}}\n' for i in range(500)]
    turned = [f'{{"target": "t", "source": "{i}"}}\n' for i in reversed(range(500))]
    chosen = []
    for name, content in (("a.jsonl", lines), ("b.jsonl", turned)):
        (tmp_path / name).write_text("".join(content))
        documents = Sources([tmp_path / name], held_out=0.1, fields=("source", "target")).documents()
        chosen.append({each.fields["source"] for each in documents if each.split == "validation"})
    assert chosen[0] == chosen[1] and 20 < len(chosen[0]) < 90


@given(st.text(st.sampled_from("ab\n"), min_size=1), st.floats(0.0, 0.99), st.lists(st.integers(0, 30)))
def test_a_text_is_cut_at_the_first_line_break_in_its_last_share(text: str, share: float, cuts: list[int]) -> None:
    """Whatever parts it is read in; nothing is lost, and without such a line break all of it stays."""
    borders = sorted({0, len(text), *(min(at, len(text)) for at in cuts)})
    head, tail = cut((text[a:b] for a, b in pairwise(borders)), len(text), share)
    first, rest = "".join(head), "".join(tail)
    place = text.find("\n", int(len(text) * (1 - share))) + 1
    assert (first, rest) == ((text[:place], text[place:]) if 0 < place < len(text) else (text, ""))


def test_long_texts_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole lines, the first and the last marked, the end held out; `read_documents` puts them together."""
    monkeypatch.setattr(files, "PART", 64)
    text, short = "".join(f"line {i}\n" for i in range(100)), "one line"
    for name, content in (("a.txt", text), ("b.txt", short)):
        (tmp_path / name).write_text(content)
    found = find_files(tmp_path)
    parts = list(Sources(found, held_out=0.1).documents())
    train, held_out = (
        [part for part in parts if part.split == split and part.name.endswith("a.txt")]
        for split in ("train", "validation")
    )
    for document in (train, held_out):
        assert [part.begins for part in document] == [True] + [False] * (len(document) - 1)
        assert [part.ends for part in document] == [False] * (len(document) - 1) + [True]
    assert len(train) > 5 and "".join(part.text for part in train + held_out) == text
    assert train[-1].text.endswith("\n") and 0.05 < sum(len(part.text) for part in held_out) / len(text) <= 0.1
    assert parts[-1] == Document(str(tmp_path / "b.txt"), short)
    assert [document.text for document in read_documents(found)] == [text, short]
    last = list(Sources(found, held_out=1).documents())
    assert "".join(part.text for part in last if part.split == "train") == text and last[-1].split == "validation"


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
