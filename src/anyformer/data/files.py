"""A file's bytes and its text, compressed (`*.gz`, `*.zst`) or not; nothing is guessed about either."""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from anyformer.errors import DataError

COMPRESSIONS = (".gz", ".zst")
#: Bytes of a text that are decoded at once.
PART = 1 << 18
#: What a text in UTF-16 begins with.
UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

#: Is told of each number of bytes of a file that were read, compressed or not.
Advance = Callable[[int], object]


def unheard(size: int) -> None:
    """For whoever does not want to know how far it is."""


class _Counted(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, path: Path, advance: Advance) -> None:
        self._file, self._advance = path.open("rb", buffering=0), advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = self._file.readinto(buffer)
        self._advance(size)
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def open_file(path: Path, advance: Advance = unheard) -> Iterator[BinaryIO]:
    """A file's bytes, decompressed on the way. Raises `DataError` where they cannot be read."""
    torn: tuple[type[Exception], ...] = (EOFError, zlib.error)
    try:
        with io.BufferedReader(_Counted(path, advance), PART) as raw:
            match path.suffix.lower():
                case ".gz":
                    yield cast(BinaryIO, gzip.GzipFile(fileobj=raw))
                case ".zst":
                    zstd = _zstd(path)
                    torn += (zstd.ZstdError,)
                    yield zstd.open(raw)
                case _:
                    yield raw
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
    return "".join(read_parts(path, encoding_of(path, encodings)))


def encoding_of(path: Path, encodings: Sequence[str]) -> str:
    """The first of several encodings that all of a file fits. Raises as `read_text`."""
    if len(encodings) == 1:
        return encodings[0]
    misfits: list[DataError] = []
    for encoding in encodings:
        try:
            for _ in _decoded(path, encoding):
                pass
            return encoding
        except _Misfit as misfit:
            misfits.append(misfit)
    raise DataError(f"{misfits[0]}; it is not {' or '.join(encodings[1:])} either")


def read_parts(path: Path, encoding: str, advance: Advance = unheard) -> Iterator[str]:
    """The text of a file in parts of whole lines, so that memory does not grow with the file. Raises as `read_text`."""
    open_line: list[str] = []
    for text in _decoded(path, encoding, advance):
        end = text.rfind("\n") + 1
        if end:
            yield "".join((*open_line, text[:end]))
            open_line.clear()
        open_line.append(text[end:])
    if last := "".join(open_line):
        yield last


class _Misfit(DataError):
    """Bytes that are not of an encoding."""


def _decoded(path: Path, encoding: str, advance: Advance = unheard) -> Iterator[str]:
    try:
        # Some codecs, such as base64, turn bytes into no text; asked this way, they say so.
        "".encode(encoding)
        decoder = codecs.getincrementaldecoder(encoding)()
    except (LookupError, UnicodeError):
        raise DataError(
            f"there is no text encoding '{encoding}'; data.encoding takes names such as utf-8, latin-1 or cp1252"
        ) from None
    with open_file(path, advance) as file:
        begin, line, block, is_first = 0, 1, None, True
        while block != b"":
            block = file.read(PART)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # What the decoder looked at begins with what was left of the block before.
                place = begin + len(block) - len(error.object) + error.start
                line += error.object[: error.start].count(b"\n")
                likely = "utf-16" if error.object.startswith(UTF_16) and place == 0 else "latin-1"
                raise _Misfit(
                    f"{path} is not {encoding}: byte 0x{error.object[error.start]:02x} at offset {place} (line {line}) "
                    f"does not fit; say what it is with --encoding (data.encoding), such as {likely}, or several to "
                    f"try in turn for each file, or leave it out with data.exclude if it is no text"
                ) from None
            except UnicodeError as error:
                raise _Misfit(f"{path} is not {encoding}: {error}") from None
            begin, line = begin + len(block), line + text.count("\n")
            yield text.removeprefix("\ufeff") if is_first else text
            is_first = is_first and not text
