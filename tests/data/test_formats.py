"""Records of every kind of file, one at a time, and the one sentence for each that does not fit."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from anyformer.data import files, formats
from anyformer.data.files import read_parts, read_text
from anyformer.data.formats import read_records
from anyformer.errors import DataError

PAIR = ("source", "target")
ROWS = [{"source": "a cat", "target": "eine Katze"}, {"source": '"x"\\', "target": "'ü'"}]


def jsonl(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def tsv(rows: list[dict[str, str]]) -> bytes:
    return b"".join("\t".join(row.values()).encode() + b"\n" for row in rows)


def csv(rows: list[dict[str, str]]) -> bytes:
    return b"".join(",".join(f'"{v}"'.replace('"x"', '""x""') for v in row.values()).encode() + b"\r\n" for row in rows)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def fields_of(path: Path, *args: Any) -> list[dict[str, Any]]:
    return [row.fields for row in read_records(path, *args)]


@pytest.mark.parametrize("compress", [None, gzip.compress, zstd.compress])
@pytest.mark.parametrize(
    "suffix, write", [("jsonl", jsonl), ("ndjson", jsonl), ("json", jsonl), ("tsv", tsv), ("csv", csv)]
)
def test_every_kind_gives_the_same_rows_compressed_or_not(
    tmp_path: Path, suffix: str, write: Callable[[list[Any]], bytes], compress: Callable[[bytes], bytes] | None
) -> None:
    """Quotes are text in a TSV and quotes in a CSV; each row says where it stands."""
    ending = {None: "", gzip.compress: ".gz", zstd.compress: ".zst"}[compress]
    path = written(tmp_path / f"pairs.{suffix}{ending}", (compress or bytes)(write(ROWS)))
    rows = list(read_records(path, PAIR))
    assert [row.fields for row in rows] == ROWS
    assert [row.place for row in rows] == [f"{path}, line 1", f"{path}, line 2"]


def test_an_array_of_objects_is_read_as_json(tmp_path: Path) -> None:
    """As many data sets for chat come."""
    path = written(tmp_path / "pairs.json", json.dumps(ROWS, indent=2).encode())
    assert fields_of(path, PAIR) == ROWS
    assert [row.place for row in read_records(path, PAIR)] == [f"{path}, row 1", f"{path}, row 2"]


def test_parquet_is_read_a_few_rows_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over row groups and batches alike; only the wanted columns, lists and objects as JSON has them."""
    monkeypatch.setattr(formats, "PARQUET_ROWS", 3)
    path = tmp_path / "chats.parquet"
    rows = [{"messages": [{"role": "user", "content": f"{i}"}], "label": i, "other": None} for i in range(10)]
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    found = list(read_records(path, ("messages", "label")))
    assert [row.fields for row in found] == [{"messages": row["messages"], "label": row["label"]} for row in rows]
    assert found[9].place == f"{path}, row 10"


def test_columns_are_called_what_the_recipe_says(tmp_path: Path) -> None:
    """Names of fields, also within objects; numbers of columns; names in the first line of a table."""
    nested = [{"translation": {"en": row["source"], "de": row["target"]}} for row in ROWS]
    names = {"source": "translation.en", "target": "translation.de"}
    assert fields_of(written(tmp_path / "a.jsonl", jsonl(nested)), PAIR, names) == ROWS
    parquet.write_table(pa.Table.from_pylist(nested), tmp_path / "a.parquet")
    assert fields_of(tmp_path / "a.parquet", PAIR, names) == ROWS

    table = b"1\ten\tde\n2\tone\teins\n"
    path = written(tmp_path / "a.tsv", table)
    assert fields_of(path, PAIR, {"source": 1, "target": "2"})[1] == {"source": "one", "target": "eins"}
    assert fields_of(path, PAIR, {"source": "en", "target": "de"}) == [{"source": "one", "target": "eins"}]
    assert fields_of(path, ("text",), {"text": 1}) == [{"text": "en"}, {"text": "one"}]
    path = written(tmp_path / "a.csv", b'\xef\xbb\xbfsource,target,"a, b"\r\n"two\r\nlines",zwei,x\r\n\r\n')
    assert fields_of(path, PAIR, {"source": "source"}) == [{"source": "two\r\nlines", "target": "zwei"}]


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b\\u2028c"}',
        b'{"text": "a"}\n{"text": ""}\n{"text": "b\xe2\x80\xa8c"}\n',
    ],
)
def test_only_line_feeds_end_lines(tmp_path: Path, content: bytes) -> None:
    """A byte-order mark, CRLF, blank lines and a last line without end are fine; a text that is empty says nothing."""
    path = written(tmp_path / "a.jsonl", content)
    assert fields_of(path) == [{"text": "a"}, {"text": "b\u2028c"}]


def test_tables_have_the_stated_encoding(tmp_path: Path) -> None:
    """One of whole bytes by lines, others (UTF-16, or several to try) all the same; JSON is always UTF-8."""
    for encoding, stated in (("latin-1", ["latin-1"]), ("utf-16", ["utf-16"]), ("latin-1", ["utf-8", "latin-1"])):
        path = written(tmp_path / "a.tsv", "Crème\tSahne\x85\r\nB\tC\n".encode(encoding))
        assert fields_of(path, PAIR, None, stated)[0] == {"source": "Crème", "target": "Sahne\x85"}
        assert fields_of(path, PAIR, None, stated)[1] == {"source": "B", "target": "C"}
    with pytest.raises(
        DataError, match=r"a.tsv is not utf-8: byte 0xff at offset 0 .line 1. does not fit; .* --encoding"
    ):
        fields_of(written(path, "a\tb".encode("utf-16")), PAIR)
    with pytest.raises(DataError, match="no text encoding 'latin-9000'"):
        fields_of(path, PAIR, None, ["latin-9000"])
    assert (
        fields_of(written(tmp_path / "a.jsonl", jsonl([{"text": "é"}])), ("text",), None, ["latin-1"])[0]["text"] == "é"
    )


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.jsonl", b'{"source": "a", "target": "b"}\n7\n', r"a.jsonl, line 2: here stands a number, where an object"),
        ("a.jsonl", b'{"source": "a", "target": "b"}\n{"sour', r"a.jsonl, line 2 is not JSON: Unterminated string"),
        ("a.jsonl", b'{"source": "a\x00", "target": "b"}', r"line 1 is not JSON: Invalid control character"),
        ("a.jsonl", b"[" * 100_000, r"a.jsonl, line 1 is not JSON: maximum recursion"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}", r"line 1 is not JSON: Exceeds the limit"),
        ("a.jsonl", b'\n{"source": "a\xff"}', r"a.jsonl, line 2 is not UTF-8: byte 0xff in column 14"),
        ("a.jsonl", b'{"source": "\\ud800", "target": "b"}', r"line 1: 'source' holds half a surrogate pair"),
        ("a.jsonl", b'{"source": ["\\ud800"], "target": "b"}', r"line 1: 'source' holds half a surrogate pair"),
        (
            "a.jsonl",
            b'{"source": "a", "en": 1}',
            r"line 1: there is no 'target' beside 'source', 'en'; .* data.columns",
        ),
        ("a.jsonl", b"{}", r"line 1: there is no 'source' beside nothing"),
        ("a.jsonl", b'{"source": "a", "target": " "}', r"line 1: 'target' is empty; remove the row or complete it"),
        ("a.jsonl", b'{"source": null, "target": "b"}', r"line 1: 'source' is empty"),
        ("a.jsonl", b'{"source": [], "target": "b"}', r"line 1: 'source' is empty"),
        ("a.json", b'[{"source": "a", "target": "b"}, "c"]', r"a.json, row 2: here stands a text"),
        ("a.json", b'[{"source": ', r"a.json is not JSON"),
        ("a.tsv", b"a\tb\nc\n", r"a.tsv, line 2: there is 1 column where 2 are needed; .* counted from 0"),
        ("a.tsv", b"a\tb\tc\n", r"a.tsv, line 1: there are 3 columns where 2 are needed"),
        ("a.tsv", b"a\t\n", r"a.tsv, line 1: 'target' is empty"),
        ("a.tsv", b"a\tb\nc\xff\td\n", r"a.tsv is not utf-8: byte 0xff at offset 5 .line 2."),
        ("a.csv", b'a,b\n"c,d\n', r"a.csv, line 2 is not CSV: unexpected end of data"),
        (
            "a.jsonl.gz",
            gzip.compress(jsonl(ROWS), mtime=0)[:-9],
            r"a.jsonl.gz is torn or not what its name says: Compressed file",
        ),
        ("a.jsonl.gz", jsonl(ROWS), r"cannot read .*a.jsonl.gz: Not a gzipped file"),
        ("a.tsv.zst", zstd.compress(tsv(ROWS))[:-3], r"a.tsv.zst is torn or not what its name says: Compressed file"),
        ("a.tsv.zst", tsv(ROWS), r"a.tsv.zst is torn or not what its name says: .*fetch or make it again"),
        ("a.parquet", b"PAR1 and no more", r"a.parquet cannot be read as parquet"),
        ("a.parquet.gz", b"", r"a.parquet.gz: a parquet file is compressed inside"),
    ],
)
def test_what_does_not_fit_is_named_with_file_and_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """Hostile files end in one sentence, whatever is wrong with them."""
    with pytest.raises(DataError, match=said) as caught:
        fields_of(written(tmp_path / name, content), PAIR)
    assert "\n" not in str(caught.value)


def test_parquet_without_the_column_and_of_other_kinds(tmp_path: Path) -> None:
    """What columns there are is said; values that JSON does not have are refused, and a file cut short."""
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"source": ["a"], "de": [b"\xff"]}), path)
    with pytest.raises(DataError, match=r"a.parquet: there is no 'target' beside 'source', 'de'; say what 'target' is"):
        fields_of(path, PAIR)
    with pytest.raises(DataError, match=r"a.parquet, row 1: 'target' holds a value of type bytes"):
        fields_of(path, PAIR, {"target": "de"})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a.parquet cannot be read as parquet"):
        fields_of(path, PAIR)


def test_columns_by_number_that_are_not_there(tmp_path: Path) -> None:
    """A stated column beyond the last, or a name that the first line lacks, is named."""
    path = written(tmp_path / "a.tsv", b"en\tde\na\tb\n")
    with pytest.raises(DataError, match=r"line 1: there is no '2' beside '0', '1'"):
        fields_of(path, PAIR, {"source": 0, "target": 2})
    with pytest.raises(DataError, match=r"line 2: there is no 'fr' beside 'en', 'de'"):
        fields_of(path, PAIR, {"source": "en", "target": "fr"})


def test_a_text_is_a_text(tmp_path: Path) -> None:
    """A number or nothing in place of a text is an error, not the word `None`."""
    for value in (None, 7, ["a"]):
        with pytest.raises(DataError, match=r"'text' is (null|a number|a list), where a text is needed"):
            fields_of(written(tmp_path / "a.jsonl", jsonl([{"text": value}])))


def test_a_missing_library_is_named_with_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who never reads such files never needs them."""
    for module, name in (("pyarrow.parquet", "a.parquet"), ("backports.zstd", "a.txt.zst")):
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(DataError, match=r"needs (pyarrow|backports.zstd): pip install 'anyformer\[train\]'"):
            list(read_records(written(tmp_path / name, b"")))


def test_a_line_of_fifty_megabytes(tmp_path: Path) -> None:
    """A book in one field of a table, or on one line, is read whole."""
    long = "a" * 50_000_000
    for name, content in (("a.csv", f'"{long}",b'), ("a.jsonl", f'{{"source": "{long}", "target": "b"}}')):
        assert fields_of(written(tmp_path / name, content.encode()), PAIR) == [{"source": long, "target": "b"}]


@given(st.lists(st.dictionaries(st.sampled_from(PAIR), st.text(st.characters(codec="utf-8"), min_size=1), min_size=2)))
def test_any_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    """Whatever the characters: line separators of Unicode, controls, quotes."""
    rows = [row for row in rows if all(value.strip() for value in row.values())]
    folder = tmp_path_factory.mktemp("rows")
    assert fields_of(written(folder / "a.jsonl", jsonl(rows)), PAIR) == rows
    if rows:
        parquet.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        assert fields_of(folder / "a.parquet", PAIR) == rows


def test_compressed_texts_are_read_as_texts(tmp_path: Path) -> None:
    """Of one compressed part or several, as `cat` makes them."""
    raw = "Crème\n".encode()
    assert read_text(written(tmp_path / "a.txt.gz", gzip.compress(raw, mtime=0) * 2)) == "Crème\nCrème\n"
    assert read_text(written(tmp_path / "a.txt.zst", zstd.compress(raw) * 2)) == "Crème\nCrème\n"


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(["utf-8", "utf-16", "latin-1"]), st.integers(1, 9))
def test_a_text_in_parts_is_the_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str, part: int
) -> None:
    """Wherever bytes are cut, also within a character; parts end with lines, and all bytes are told of."""
    raw = text.encode(encoding, "replace")
    path, read = written(tmp_path_factory.mktemp("text") / "a.txt", raw), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "PART", part)
        parts = list(read_parts(path, encoding, read.append))
    assert "".join(parts) == raw.decode(encoding).removeprefix("\ufeff")
    assert all(each.endswith("\n") for each in parts[:-1]) and all(parts) and sum(read) == len(raw)


def test_what_does_not_fit_is_found_beyond_the_first_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offset and the line are those of the file, even if a character stands across two parts."""
    monkeypatch.setattr(files, "PART", 4)
    path = written(tmp_path / "a.txt", b"ab\nc\ndef\xc3\xc3\n")
    with pytest.raises(DataError, match=r"not utf-8: .* in turn for each file, .*; it is not ascii or utf-16 either"):
        read_text(path, ["utf-8", "ascii", "utf-16"])
    with pytest.raises(DataError, match=r"byte 0xc3 at offset 8 .line 3."):
        read_text(path)


def test_how_much_was_read_is_told_in_bytes_of_the_file(tmp_path: Path) -> None:
    """Compressed ones too: what a bar shows is how far along the files on the disk one is."""
    rows = [{"source": f"{i} " * 50, "target": f"{i}"} for i in range(3000)]
    plain = written(tmp_path / "a.jsonl", jsonl(rows))
    compressed = written(tmp_path / "a.jsonl.zst", zstd.compress(jsonl(rows)))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=100)
    for path in (plain, compressed, tmp_path / "a.parquet"):
        read: list[int] = []
        assert sum(1 for _ in read_records(path, PAIR, advance=read.append)) == 3000
        assert sum(read) == pytest.approx(path.stat().st_size, rel=0.01) and len(read) > 1
