"""Where text comes from: files, folders, globs and data sets of a hub, read strictly and always in the same order.

    references --find_files--> paths --read_documents--> documents --hold_out--> documents, each of a split

A file is a document. Nothing is guessed: bytes that are not of the stated encoding are an error that says where.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from anyformer.checkpoints import hub
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
#: Folders that hold other people's or generated files, besides the hidden ones.
SKIPPED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "dist-packages"})
#: What a data set on a hub holds beside its data.
NO_DATA = ("README.md", "LICENSE*", "CITATION*", ".*")
#: With fewer documents than this, choosing whole ones would hold out far too much or nothing.
FEWEST_TO_CHOOSE_FROM = 200


@dataclass(frozen=True)
class Document:
    """A text that stands for itself: no token of it sees, or is predicted from, another document's. `split` says what
    it is for: `train` or `validation`."""

    name: str
    text: str
    split: str = "train"


def find_files(references: str | Path | Sequence[str | Path], *, exclude: Sequence[str] = ()) -> list[Path]:
    """The files that `references` (files, folders, globs, data sets of a hub) stand for, each once: references in the
    order given, the files of a folder or glob sorted by path.

    A folder gives its text-like files (`TEXT_SUFFIXES`), those below it included; empty ones, hidden folders and
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
        directory = hub.fetch_files(place, [f"*{suffix}" for suffix in TEXT_SUFFIXES], ignore=NO_DATA)
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
    return name.lower().endswith(TEXT_SUFFIXES)


def _fits(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path, or the name at its end, matches one of the patterns."""
    return any(fnmatch(path, pattern) or fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)


def read_text(path: Path, encodings: Sequence[str] = ("utf-8",)) -> str:
    """The text of a file, in the first of `encodings` that all of it fits; a leading byte-order mark is dropped.

    Raises `DataError` with the byte offset of what does not fit the first encoding, and where the file is unreadable
    or an encoding unknown.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    misfits: list[UnicodeDecodeError] = []
    for encoding in encodings:
        try:
            return raw.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            misfits.append(error)
        except LookupError:
            raise DataError(
                f"there is no text encoding '{encoding}'; data.encoding takes names such as utf-8, latin-1 or cp1252"
            ) from None
    first = misfits[0]
    raise DataError(
        f"{path} is not {' nor '.join(encodings)}: byte 0x{raw[first.start]:02x} at offset {first.start} does not fit; "
        f"say what it is with --encoding (data.encoding), such as latin-1, or several to try in turn for each file"
    )


def read_documents(
    files: Iterable[Path], encodings: Sequence[str] = ("utf-8",), *, split: str = "train"
) -> Iterator[Document]:
    """The documents of `files`, one a file, read one at a time. Raises `DataError` as `read_text`, and for an empty
    file."""
    for path in files:
        text = read_text(path, encodings)
        if not text:
            raise DataError(f"{path} is empty; remove it from the data or give it content")
        yield Document(str(path), text, split)


def hold_out(documents: Iterable[Document], share: float, *, whole: bool) -> Iterator[Document]:
    """Part `documents` for validation: about `share` of them come back as of the split `validation`.

    Nothing but the texts decides, so the parting is the same in every run. `whole` documents are chosen by a hash of
    their text: copies of one text never stand on both sides. Otherwise the end of every document is held out, from the
    first line break in its last `share` on.
    """
    for document in documents:
        if whole:
            digest = hashlib.blake2b(document.text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            chosen = int.from_bytes(digest, "big") < share * 2**64
            yield replace(document, split="validation") if chosen else document
            continue
        text = document.text
        cut = text.find("\n", int(len(text) * (1 - share))) + 1
        if 0 < cut < len(text):
            yield replace(document, text=text[:cut])
            yield replace(document, text=text[cut:], split="validation")
        else:
            yield document


@dataclass(frozen=True)
class Sources:
    """The files of a corpus: those to train on and those held out; without these, a `share` of the former's text is."""

    train: Sequence[Path]
    validation: Sequence[Path] = ()
    encodings: Sequence[str] = ("utf-8",)
    share: float = 0.05

    @property
    def files(self) -> list[Path]:
        """All files."""
        return [*self.train, *self.validation]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def holds_out_whole(self) -> bool:
        """Whether whole documents are held out, or the ends of all."""
        return len(self.train) >= FEWEST_TO_CHOOSE_FROM

    def documents(self) -> Iterator[Document]:
        """All documents, each of its split, read one at a time; the same at every call. Raises `DataError`."""
        documents = read_documents(self.train, self.encodings)
        if self.validation:
            yield from documents
            yield from read_documents(self.validation, self.encodings, split="validation")
        else:
            yield from hold_out(documents, self.share, whole=self.holds_out_whole)

    def facts(self) -> dict[str, Any]:
        """What a manifest keeps of them: the encodings, and each file's size and time of change (ns)."""
        stats = [(path, path.stat()) for path in self.files]
        return {
            "encodings": list(self.encodings),
            "files": [{"path": str(path), "size": stat.st_size, "modified": stat.st_mtime_ns} for path, stat in stats],
        }
