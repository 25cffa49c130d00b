"""Where data comes from: files, folders, globs and data sets of a hub, always in the same order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from anyformer.checkpoints import hub
from anyformer.data.files import COMPRESSIONS
from anyformer.data.formats import RECORD_SUFFIXES
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


def find_files(references: str | Path | Sequence[str | Path], *, exclude: Sequence[str] = ()) -> list[Path]:
    """The files that `references` (files, folders, globs, data sets of a hub) stand for, each once: references in the
    order given, the files of a folder or glob sorted by path.

    A folder gives its text-like files (`TEXT_SUFFIXES`) and files of records, compressed or not, those below it
    included; empty ones, hidden folders and `SKIPPED_FOLDERS` are passed over. A data set (`hub:org/name`,
    `hub:org/name@revision`) gives those of its repository, but its card, and `hub:org/name/*.log` those that fit the
    glob. `exclude` are globs: a file or folder found *inside* a folder or data set stays out if its name or its path
    from there matches one.

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
            files = [file for match in matches for file in _files_at(match, exclude)]
            if not files and path.exists():
                raise DataError(
                    f"{path} is neither a file nor a folder; save what it gives into a file, which can be "
                    f"read more than once"
                )
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


def _files_at(match: Path, exclude: Sequence[str]) -> Iterator[Path]:
    """What a match of a glob stands for. Pipes, and links that lead nowhere, are passed over."""
    if match.is_dir():
        yield from _walk(match, exclude)
    elif match.is_file():
        yield match


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
