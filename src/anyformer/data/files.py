"""A file's bytes and its text, compressed (`*.gz`, `*.zst`) or not; nothing is guessed about either."""

from __future__ import annotations

import gzip
import importlib
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer.errors import DataError

COMPRESSIONS = (".gz", ".zst")


@contextmanager
def open_file(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed on the way. Raises `DataError` where they cannot be read."""
    torn: tuple[type[Exception], ...] = (EOFError, zlib.error)
    try:
        match path.suffix.lower():
            case ".gz":
                file = cast(BinaryIO, gzip.open(path))  # noqa: SIM115
            case ".zst":
                zstd = _zstd(path)
                torn += (zstd.ZstdError,)
                file = zstd.open(path)
            case _:
                file = path.open("rb")
        with file:
            yield file
    except torn as error:
        raise DataError(f"{path} is torn or not what its name says: {error}; fetch or make it again") from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def _zstd(path: Path) -> Any:
    """Zstandard as Python has it from 3.14 on, or its backport."""
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    return optional(name, "backports.zstd", path)


def optional(name: str, package: str, path: Path) -> Any:
    """A module of an optional package. Raises `DataError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(f"reading {path} needs {package}: pip install 'anyformer[train]'") from None


def read_text(path: Path, encodings: Sequence[str] = ("utf-8",)) -> str:
    """The text of a file, in the first of `encodings` that all of it fits; a leading byte-order mark is dropped.

    Raises `DataError` with the byte offset of what does not fit the first encoding, and where the file is unreadable
    or an encoding unknown.
    """
    with open_file(path) as file:
        raw = file.read()
    misfits: list[UnicodeDecodeError] = []
    for encoding in encodings:
        try:
            return raw.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            misfits.append(error)
        except LookupError:
            raise unknown_encoding(encoding) from None
    first = misfits[0]
    raise DataError(
        f"{path} is not {' nor '.join(encodings)}: byte 0x{raw[first.start]:02x} at offset {first.start} does not fit; "
        f"say what it is with --encoding (data.encoding), such as latin-1, or several to try in turn for each file"
    )


def unknown_encoding(encoding: str) -> DataError:
    """What is said of an encoding that Python does not know."""
    return DataError(
        f"there is no text encoding '{encoding}'; data.encoding takes names such as utf-8, latin-1, cp1252"
    )
