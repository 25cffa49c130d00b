"""Documents out of files: each to train on or held out, read strictly, always in the same order, never a whole file.

files    a.txt             b.jsonl                 c.txt
         part part part    row row row row         part
         document          a document each         document, its end held out
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from anyformer.data.files import Advance, encoding_of, read_parts, unheard
from anyformer.data.formats import TEXT, holds_records, read_records
from anyformer.errors import DataError

#: With fewer texts than this, choosing whole ones would hold out far too much or nothing.
FEWEST_TO_CHOOSE_FROM = 200


@dataclass(frozen=True)
class Document:
    """What stands for itself: no token of it sees, or is predicted from, another document's. `split` says what it is
    for: `train` or `validation`.

    A plain text has no `fields`; a record has those that were wanted of it, and as `text` the one of that name. A long
    text comes in parts, of which the first begins the document and the last ends it.
    """

    name: str
    text: str
    split: str = "train"
    fields: Mapping[str, Any] = field(default_factory=dict)
    begins: bool = True
    ends: bool = True


def read_documents(
    files: Iterable[Path],
    encodings: Sequence[str] = ("utf-8",),
    *,
    fields: Sequence[str] = TEXT,
    columns: Mapping[str, str | int] | None = None,
) -> Iterator[Document]:
    """The documents of `files`, each whole: one a text file, one a record with these `fields`. Raises `DataError` as
    `Sources.documents`."""
    parts: list[Document] = []
    for document in Sources(list(files), encodings=encodings, fields=fields, columns=columns or {}).everything():
        parts.append(document)
        if document.ends:
            yield replace(parts[0], text="".join(part.text for part in parts), ends=True)
            parts.clear()


@dataclass(frozen=True)
class Sources:
    """The files of a corpus: those to train on and those held out. Without these, something is `held_out` of the
    former: a share of it, or a number of documents, the last.

    `fields` are wanted of every record, which calls them as `columns` says (`formats.read_records`). Raises `DataError`
    where that says something of another.
    """

    train: Sequence[Path]
    validation: Sequence[Path] = ()
    encodings: Sequence[str] = ("utf-8",)
    held_out: float | int = 0.05
    fields: Sequence[str] = TEXT
    columns: Mapping[str, str | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.columns.keys() - set(self.fields):
            raise DataError(
                f"data.columns says what '{name}' is called, which is not read here; {', '.join(self.fields)} would be"
            )

    @property
    def files(self) -> list[Path]:
        """All files."""
        return [*self.train, *self.validation]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    def parting(self) -> str:
        """What is held out for validation, as a person says it."""
        if self.validation:
            return "files of their own"
        if self.held_out >= 1:
            return f"the last {self.held_out:,} documents"
        if self._holds_out_whole or any(self._holds_records(path) for path in self.train):
            return f"{self.held_out:.0%} of the documents, by a hash of what they say"
        return f"{self.held_out:.0%} of every document, its end"

    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of them: how they are read, and each file's size and time of change (ns)."""
        stats = [(path, path.stat()) for path in self.files]
        return {
            "encodings": list(self.encodings),
            "fields": list(self.fields),
            "columns": dict(self.columns),
            "held_out": self.held_out,
            "files": [{"path": str(path), "size": stat.st_size, "modified": stat.st_mtime_ns} for path, stat in stats],
        }

    def everything(self, advance: Advance = unheard) -> Iterator[Document]:
        """The documents of all files, nothing held out of those to train on. Raises as `documents`."""
        for split, files in (("train", self.train), ("validation", self.validation)):
            yield from chain.from_iterable(self._read(path, split, advance) for path in files)

    def documents(self, advance: Advance = unheard) -> Iterator[Document]:
        """All documents, each of its split, the same at every call; `advance` is told of bytes of files that were read.

        Nothing but what they say decides which are held out by a share, so the parting is the same in every run.
        Records, and texts where there are many, are chosen by a hash: copies of one never stand on both sides.
        Otherwise the end of every text is held out, from the first line break in its last share on.

        Raises `DataError` as `read_records` and `read_text`, for an empty file, for a plain text where other `fields`
        than `text` are wanted, and where more documents are to be held out than there are.
        """
        if self.validation:
            return self.everything(advance)
        if self.held_out >= 1:
            return hold_out_last(self.everything(advance), int(self.held_out))
        return chain.from_iterable(self._parted(path, advance) for path in self.train)

    @property
    def _holds_out_whole(self) -> bool:
        return len(self.train) >= FEWEST_TO_CHOOSE_FROM

    def _holds_records(self, path: Path) -> bool:
        return holds_records(path, self.fields, self.columns)

    def _read(self, path: Path, split: str, advance: Advance) -> Iterator[Document]:
        if self._holds_records(path):
            rows = read_records(path, self.fields, self.columns, self.encodings, advance)
            documents = (Document(row.place, row.fields.get("text", ""), split, row.fields) for row in rows)
        elif tuple(self.fields) == TEXT:
            parts = read_parts(path, encoding_of(path, self.encodings), advance)
            documents = _as_document(str(path), parts, split)
        else:
            raise DataError(
                f"{path} is plain text, and {' and '.join(self.fields)} are needed: give .jsonl, .parquet, .tsv or "
                f".csv, and leave others out with data.exclude"
            )
        return _not_empty(path, documents)

    def _parted(self, path: Path, advance: Advance) -> Iterator[Document]:
        """The documents of a file, a share of them or of it held out."""
        share = float(self.held_out)
        if self._holds_records(path):
            for document in self._read(path, "train", advance):
                is_chosen = _falls_within(share, [_said(document)])
                yield replace(document, split="validation") if is_chosen else document
        elif self._holds_out_whole:
            texts = (part.text for part in self._read(path, "train", unheard))
            yield from self._read(path, "validation" if _falls_within(share, texts) else "train", advance)
        else:
            length = sum(len(part.text) for part in self._read(path, "train", unheard))
            parts = read_parts(path, encoding_of(path, self.encodings), advance)
            head, tail = cut(parts, length, share)
            yield from _as_document(str(path), head, "train")
            yield from _as_document(str(path), tail, "validation")


def _not_empty(path: Path, documents: Iterator[Document]) -> Iterator[Document]:
    first = next(documents, None)
    if first is None:
        raise DataError(f"{path} is empty; remove it from the data or give it content")
    yield first
    yield from documents


def _as_document(name: str, parts: Iterator[str], split: str) -> Iterator[Document]:
    """The parts of one text; none where there is none."""
    part, begins = next(parts, None), True
    while part is not None:
        following = next(parts, None)
        yield Document(name, part, split, begins=begins, ends=following is None)
        part, begins = following, False


def cut(parts: Iterator[str], length: int, share: float) -> tuple[Iterator[str], Iterator[str]]:
    """A text of `length` characters in two, at the first line break in its last `share`; the second is empty where
    there is none, or nothing behind it. The first has to be read before the second."""
    rest: list[str] = []

    def head() -> Iterator[str]:
        begin, earliest = 0, int(length * (1 - share))
        for part in parts:
            end = part.find("\n", max(earliest - begin, 0)) + 1
            if end and begin + end < length:
                yield part[:end]
                rest.extend(filter(None, [part[end:]]))
                return
            yield part
            begin += len(part)

    return head(), chain(rest, parts)


def _said(document: Document) -> str:
    """What a record says, the same however its fields are ordered."""
    is_text = document.fields.keys() == {"text"}
    return document.text if is_text else json.dumps(document.fields, sort_keys=True, ensure_ascii=False)


def _falls_within(share: float, texts: Iterable[str]) -> bool:
    """Whether a text, in parts, is among the `share` of all texts with the lowest hashes."""
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass"))
    return int.from_bytes(digest.digest(), "big") < share * 2**64


def hold_out_last(documents: Iterable[Document], count: int) -> Iterator[Document]:
    """Part documents for validation: the last `count` of them. Raises `DataError` where there are no others."""
    last: deque[Document] = deque()
    whole, is_any_left = 0, False
    for document in documents:
        last.append(document)
        whole += document.ends
        while whole > count:
            first = last.popleft()
            whole -= first.ends
            is_any_left = True
            yield first
    if not is_any_left:
        raise DataError(f"the training data has {whole:,} documents, so {count:,} cannot be held out of it")
    for document in last:
        yield replace(document, split="validation")
