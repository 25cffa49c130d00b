"""Where text comes from: files, folders, globs and data sets of a hub, read strictly and always in the same order.

    references --find_files--> paths --read_documents--> documents --hold_out--> documents, each of a split

A text file is a document, and so is each record of a file of records (`formats`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from anyformer.checkpoints import hub
from anyformer.data.files import COMPRESSIONS, read_text
from anyformer.data.formats import RECORD_SUFFIXES, TEXT, holds_records, read_records
from anyformer.errors import DataError

#: What a reference to a data set on a hub begins with; no path of a folder is mistaken for one.
HUB = "hub:"
#: What a folder is searched for. A file named outright, or matched by a glob, is taken whatever it is called.
TEXT_SUFFIXES = (
    *(".txt", ".text", ".md", ".markdown", ".rst", ".tex", ".org", ".adoc", ".html", ".htm", ".xml", ".log", ".srt"),
    *(".csv", ".tsv", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".diff", ".patch", ".sql", ".css", ".cmake"),
    *(".py", ".pyi", ".c", ".h", ".cc", ".cpp", ".hpp", ".cu", ".rs", ".go", ".java", ".kt", ".scala", ".cs", ".swift"),
    *(".js", ".ts", ".jsx", ".tsx", ".sh", ".rb", ".php", ".pl", ".lua", ".r", ".jl", ".hs", ".ml", ".el", ".lisp"),
)
READ_SUFFIXES = tuple(
    suffix + compression for suffix in (*TEXT_SUFFIXES, *RECORD_SUFFIXES) for compression in ("", *COMPRESSIONS)
)
#: Folders that hold other people's or generated files, besides the hidden ones.
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
#: What a data set on a hub holds beside its data.
NO_DATA = ("README.md", "LICENSE*", "CITATION*", "dataset_infos.json", ".*")
#: With fewer documents than this, choosing whole ones would hold out far too much or nothing.
FEWEST_TO_CHOOSE_FROM = 200


@dataclass(frozen=True)
class Document:
    """What stands for itself: no token of it sees, or is predicted from, another document's. `split` says what it is
    for: `train` or `validation`.

    A plain text has no `fields`; a record has those that were wanted of it, and as `text` the one of that name.
    """

    name: str
    text: str
    split: str = "train"
    fields: Mapping[str, Any] = field(default_factory=dict)


def find_files(references: str | Path | Sequence[str | Path], *, exclude: Sequence[str] = ()) -> list[Path]:
    """The files that `references` (files, folders, globs, data sets of a hub) stand for, each once: references in the
    order given, the files of a folder or glob sorted by path.

    A folder gives its text-like files (`TEXT_SUFFIXES`) and files of records, compressed or not, those below it
    included; empty ones, hidden folders and
    `SKIPPED_FOLDERS` are passed over. A data set (`hub:org/name`, `hub:org/name@revision`) gives those of its
    repository, but its card, and `hub:org/name/*.log` those that fit the glob. `exclude` are globs: a file or folder
    found *inside* a folder or data set stays out if its name or its path from there matches one.

    Raises `DataError` where a reference stands for nothing.
    """
    wanted = [references] if isinstance(references, str | Path) else references
    found: dict[Path, None] = {}
    for reference in wanted:
        path = Path(reference).expanduser()
        if is_on_a_hub(reference):
            files = _fetched(str(reference), exclude)
        elif path.is_file():
            files = [path]
        elif path.is_dir():
            files = list(_walk(path, exclude))
            if not files:
                raise DataError(
                    f"no text files in the folder {path}: looked for {', '.join(TEXT_SUFFIXES[:6])} and the "
                    f"like; name files of other kinds outright or by a glob such as '{path}/*.log'"
                )
        else:
            # Path.glob takes no absolute pattern.
            matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
            files = [file for match in matches for file in (_walk(match, exclude) if match.is_dir() else [match])]
            if not files:
                raise DataError(
                    f"nothing found at '{reference}': no such file or folder, and as a glob it has no match"
                )
        found.update(dict.fromkeys(files))
    if not found:
        raise DataError("no data was named; give files, folders or globs in data.train")
    return list(found)


def is_on_a_hub(reference: str | Path) -> bool:
    """Whether a reference names a data set of a hub; what is on the disk wins."""
    return str(reference).startswith(HUB) and not Path(reference).exists()


def pinned(reference: str) -> str:
    """A reference to a data set of a hub, pinned to the commit that its revision stands for now. Raises `DataError`."""
    place = hub.data_place(reference.removeprefix(HUB))
    return reference if place.is_pinned else f"{HUB}{place._replace(revision=hub.commit(place))}"


def _fetched(reference: str, exclude: Sequence[str]) -> list[Path]:
    """The files of a data set, fetched where the cache lacks them."""
    place = hub.data_place(reference.removeprefix(HUB))
    if place.file is not None:
        directory = hub.fetch_files(place, [place.file])
        found = sorted(path for path in directory.rglob("*") if path.is_file())
        files = [path for path in found if fnmatch(path.relative_to(directory).as_posix(), place.file)]
    else:
        unread = [name for name in hub.contents(place) if not _is_read(name) and not _fits(name, NO_DATA)]
        if unread:
            raise DataError(
                f"the data set {place.repository} holds {unread[0]}, a kind of file that is not read; name those that "
                f"hold plain text, such as '{HUB}{place.repository}/*.txt'"
            )
        directory = hub.fetch_files(place, [f"*{suffix}" for suffix in READ_SUFFIXES], ignore=NO_DATA)
        files = list(_walk(directory, (*NO_DATA, *exclude)))
    if not files:
        raise DataError(f"no text files at '{reference}': the data set has none of that name")
    return files


def _walk(folder: Path, exclude: Sequence[str]) -> Iterator[Path]:
    def is_wanted(path: Path) -> bool:
        inside = path.relative_to(folder).as_posix()
        return not path.name.startswith(".") and not _fits(inside, exclude)

    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and is_wanted(Path(here, name))]
        texts = (Path(here, name) for name in names if _is_read(name))
        found += [path for path in texts if is_wanted(path) and path.is_file() and path.stat().st_size]
    return iter(sorted(found))


def _is_read(name: str) -> bool:
    return name.lower().endswith(READ_SUFFIXES)


def _fits(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path, or the name at its end, matches one of the patterns."""
    return any(fnmatch(path, pattern) or fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)


def read_documents(
    files: Iterable[Path],
    encodings: Sequence[str] = ("utf-8",),
    *,
    split: str = "train",
    fields: Sequence[str] = TEXT,
    columns: Mapping[str, str | int] | None = None,
) -> Iterator[Document]:
    """The documents of `files`, read one at a time: one a text file, one a record (`formats.read_records`).

    Raises `DataError` as `read_text` and `read_records`, for an empty file, and for a plain text where other `fields`
    than `text` are wanted.
    """
    for path in files:
        if holds_records(path, fields, columns):
            documents = _records(path, encodings, split, fields, columns)
        elif tuple(fields) == TEXT:
            documents = _text(path, encodings, split)
        else:
            raise DataError(
                f"{path} is plain text, and {' and '.join(fields)} are needed: give .jsonl, .parquet, .tsv or .csv, "
                f"and leave others out with data.exclude"
            )
        first = next(documents, None)
        if first is None:
            raise DataError(f"{path} is empty; remove it from the data or give it content")
        yield first
        yield from documents


def _text(path: Path, encodings: Sequence[str], split: str) -> Iterator[Document]:
    if text := read_text(path, encodings):
        yield Document(str(path), text, split)


def _records(
    path: Path,
    encodings: Sequence[str],
    split: str,
    fields: Sequence[str],
    columns: Mapping[str, str | int] | None,
) -> Iterator[Document]:
    for row in read_records(path, fields, columns, encodings):
        yield Document(row.place, row.fields.get("text", ""), split, row.fields)


def hold_out(documents: Iterable[Document], share: float, *, whole: bool) -> Iterator[Document]:
    """Part `documents` for validation: about `share` of them come back as of the split `validation`.

    Nothing but what they say decides, so the parting is the same in every run. Records, and all documents if `whole`,
    are chosen by a hash of it: copies of one text never stand on both sides. Otherwise the end of every document is
    held out, from the first line break in its last `share` on.
    """
    for document in documents:
        if whole or document.fields:
            chosen = _hash(document) < share * 2**64
            yield replace(document, split="validation") if chosen else document
            continue
        text = document.text
        cut = text.find("\n", int(len(text) * (1 - share))) + 1
        if 0 < cut < len(text):
            yield replace(document, text=text[:cut])
            yield replace(document, text=text[cut:], split="validation")
        else:
            yield document


def _hash(document: Document) -> int:
    """64 bits that what the document says decides."""
    said = document.text
    if document.fields.keys() - {"text"}:
        said = json.dumps(document.fields, sort_keys=True, ensure_ascii=False)
    return int.from_bytes(hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def hold_out_last(documents: Iterable[Document], count: int) -> Iterator[Document]:
    """Part `documents` for validation: the last `count` of them. Raises `DataError` where there are no others."""
    last: deque[Document] = deque()
    trained_on = 0
    for document in documents:
        last.append(document)
        if len(last) > count:
            trained_on += 1
            yield last.popleft()
    if not trained_on:
        raise DataError(f"the training data has {len(last):,} documents, so {count:,} cannot be held out of it")
    for document in last:
        yield replace(document, split="validation")


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
        if self._holds_out_whole or any(holds_records(path, self.fields, self.columns) for path in self.train):
            return f"{self.held_out:.0%} of the documents, by a hash of what they say"
        return f"{self.held_out:.0%} of every document, its end"

    @property
    def _holds_out_whole(self) -> bool:
        return len(self.train) >= FEWEST_TO_CHOOSE_FROM

    def documents(self) -> Iterator[Document]:
        """All documents, each of its split, read one at a time; the same at every call. Raises `DataError`."""
        read = partial(read_documents, encodings=self.encodings, fields=self.fields, columns=self.columns)
        documents = read(self.train)
        if self.validation:
            return chain(documents, read(self.validation, split="validation"))
        if self.held_out >= 1:
            return hold_out_last(documents, int(self.held_out))
        return hold_out(documents, self.held_out, whole=self._holds_out_whole)

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
