"""What files hold: texts, or records in one of these forms.

    *.jsonl  *.ndjson    an object a line
    *.json               the same, or one array of objects
    *.tsv  *.csv         a row a line; columns go by their number from 0, or by the names in the first line
    *.parquet            a row each
    anything else        text

All but parquet may be compressed (`*.gz`, `*.zst`). Records are read one at a time, never a whole file, and nothing is
guessed: what does not fit is an error that names file and line.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.data.files import COMPRESSIONS, Advance, encoding_of, open_file, optional, read_parts, unheard
from anyformer.errors import DataError

#: Files of these kinds hold records, whatever is wanted of them.
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
#: Files of these kinds are texts, unless a field other than `text`, or a column, is wanted of them.
TABLE_SUFFIXES = (".tsv", ".csv", ".json")
#: What is read of a file where nothing else is asked for.
TEXT = ("text",)
#: How many rows of a parquet file are decoded at once.
PARQUET_ROWS = 1024


@dataclass(frozen=True)
class Row:
    """A row of a file: `place` names the file and the line, `fields` are the wanted values, as JSON has them."""

    place: str
    fields: dict[str, Any]


def kind(path: Path) -> str:
    """The suffix that says what a file holds, compressed or not: `.jsonl` of `a.jsonl.zst`."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return Path(name).suffix


def holds_records(path: Path, fields: Sequence[str] = TEXT, columns: Mapping[str, str | int] | None = None) -> bool:
    """Whether a file is read by records where `fields` are wanted, or as one text."""
    is_table = kind(path) in TABLE_SUFFIXES and (tuple(fields) != TEXT or bool(columns))
    return kind(path) in RECORD_SUFFIXES or is_table


def read_records(
    path: Path,
    fields: Sequence[str] = TEXT,
    columns: Mapping[str, str | int] | None = None,
    encodings: Sequence[str] = ("utf-8",),
    advance: Advance = unheard,
) -> Iterator[Row]:
    """The rows of a file, one at a time, each with exactly `fields`.

    `columns` says what the file calls a field: a name (`translation.en` reaches into an object), or for `.tsv` and
    `.csv` a number from 0. Unsaid, a field is called by its own name, and the columns of `.tsv` and `.csv` are the
    fields in their order. JSON is UTF-8, whatever `encodings` say of texts and tables.

    A row that is only a text, and empty, is passed over. Raises `DataError` naming file and line where else a value is
    empty, or none that JSON has, a row is torn, no object or lacks a field, a text is not of its encoding.
    """
    columns = columns or {}
    named = {name: str(columns.get(name, name)) for name in fields}
    match kind(path):
        case ".parquet":
            rows = _parquet_rows(path, named, advance)
        case ".tsv" | ".csv":
            rows = _table_rows(path, _lines(path, encodings, advance), named if columns else None, len(fields))
            named = named if columns else {name: str(number) for number, name in enumerate(fields)}
        case ".json" if _is_array(path):
            rows = _json_array(path, advance)
        case _:
            rows = _json_lines(path, advance)
    for place, row in rows:
        values = {name: _value(row, name, column, place) for name, column in named.items()}
        empty = [name for name, value in values.items() if _is_empty(value)]
        if not empty:
            yield Row(place, values)
        elif tuple(fields) != TEXT:
            raise DataError(f"{place}: '{empty[0]}' is empty; remove the row or complete it")


def _value(row: Any, name: str, column: str, place: str) -> Any:
    """What a row holds in a column, checked."""
    if not isinstance(row, dict):
        raise DataError(f"{place}: here stands {_described(row)}, where an object with {name!r} is needed")
    found: Any = row
    for step in [column] if column in row else column.split("."):
        if not isinstance(found, dict) or step not in found:
            raise _missing(place, name, column, row)
        found = found[step]
    if name == "text" and not isinstance(found, str):
        raise DataError(f"{place}: '{name}' is {_described(found)}, where a text is needed")
    _check_is_json(found, name, place)
    return found


def _missing(place: str, name: str, column: str, there: Iterable[str]) -> DataError:
    return DataError(
        f"{place}: there is no '{column}' beside {', '.join(map(repr, there)) or 'nothing'}; say what '{name}' is "
        f"called here with data.columns"
    )


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip()) or value in ([], {})


def _check_is_json(value: Any, name: str, place: str) -> None:
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{place}: '{name}' holds half a surrogate pair, which is no character") from None
    elif isinstance(value, list):
        for each in value:
            _check_is_json(each, name, place)
    elif isinstance(value, dict):
        for each in value.values():
            _check_is_json(each, name, place)
    elif not (value is None or isinstance(value, bool | int | float)):
        raise DataError(f"{place}: '{name}' holds {_described(value)}; texts, numbers, lists and objects are read")


def _described(value: Any) -> str:
    match value:
        case None:
            return "null"
        case str():
            return "a text"
        case bool() | int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"a value of type {type(value).__name__}"


def _json_lines(path: Path, advance: Advance) -> Iterator[tuple[str, Any]]:
    with open_file(path, advance) as file:
        for number, line in enumerate(file, 1):
            content = line.removeprefix(BOM_UTF8) if number == 1 else line
            if content.strip():
                yield f"{path}, line {number}", _parsed(content, f"{path}, line {number}")


def _is_array(path: Path) -> bool:
    with open_file(path) as file:
        return file.read(4096).removeprefix(BOM_UTF8).lstrip().startswith(b"[")


def _json_array(path: Path, advance: Advance) -> Iterator[tuple[str, Any]]:
    with open_file(path, advance) as file:
        rows = _parsed(file.read().removeprefix(BOM_UTF8), str(path))
    return ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _parsed(raw: bytes, place: str) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{place} is not UTF-8: byte 0x{raw[error.start]:02x} in column {error.start + 1}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON: {error}; repair or remove it") from None


def _table_rows(
    path: Path, lines: Iterator[str], named: Mapping[str, str] | None, count: int
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table, the cells by the number of their column. Where columns go by names, the first line holds
    them; without any, there must be just as many as `count`."""
    rows = _csv_cells(path, lines) if kind(path) == ".csv" else _tsv_cells(lines)
    header = None
    if named is not None and not all(column.isdecimal() for column in named.values()):
        _, header = next(rows, (0, []))
    for number, cells in rows:
        place = f"{path}, line {number}"
        if named is None and len(cells) != count:
            raise DataError(
                f"{place}: {_columns(cells)} where {count} are needed; say which are what with data.columns, counted "
                f"from 0"
            )
        if header is not None and len(cells) != len(header):
            raise DataError(f"{place}: {_columns(cells)} where the first line names {len(header)}")
        yield place, dict(zip(header or map(str, range(len(cells))), cells))


def _columns(cells: Sequence[str]) -> str:
    return "there is 1 column" if len(cells) == 1 else f"there are {len(cells)} columns"


def _tsv_cells(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        if content := line.rstrip("\r\n"):
            yield number, content.split("\t")


def _csv_cells(path: Path, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    # The module's own limit is there for files that were never meant to be read; these were.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, strict=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}") from None


def _lines(path: Path, encodings: Sequence[str], advance: Advance) -> Iterator[str]:
    """The lines of a text, with their ends."""
    for part in read_parts(path, encoding_of(path, encodings), advance):
        yield from io.StringIO(part, newline="\n")


def _parquet_rows(path: Path, named: Mapping[str, str], advance: Advance) -> Iterator[tuple[str, Any]]:
    if path.suffix.lower() in COMPRESSIONS:
        raise DataError(f"{path}: a parquet file is compressed inside; decompress this one")
    parquet = optional("pyarrow.parquet", "pyarrow", path)
    arrow = optional("pyarrow", "pyarrow", path)
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            has = file.schema_arrow.names
            whole = {column if column in has else column.partition(".")[0]: name for name, column in named.items()}
            for column, name in whole.items():
                if column not in has:
                    raise _missing(str(path), name, column, has)
            number, bytes_a_row = 0, path.stat().st_size / max(file.metadata.num_rows, 1)
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=list(whole)):
                    advance(round(len(batch) * bytes_a_row))
                    for row in batch.to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
    except (arrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
