"""A corpus as arrays of token ids on disk: documents end to end, tokenised once, memory-mapped ever after.

    DIRECTORY/train.tokens.ids     ids, uint16 or uint32, little-endian
    DIRECTORY/train.tokens.starts  where each document begins among them, int64, little-endian
    DIRECTORY/manifest.json        what was tokenised, and how much it came to

A text has one column, `tokens`; a record has as many as its objective reads (`source` and `target` of a pair). The
arrays have no header: what they are stands in the manifest, which is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from anyformer.data.documents import Document
from anyformer.errors import DataError

if TYPE_CHECKING:
    from anyformer.text import Tokenizer

#: Texts longer than this many characters are tokenised in parts of whole lines, so that memory stays bounded.
PART = 1 << 20
#: How many parts are handed to the tokenizer at once, and how many records; it spreads them over the cores.
PARTS_AT_ONCE, RECORDS_AT_ONCE = 32, 1024


@dataclass(frozen=True)
class Column:
    """Sequences of ids end to end: `ids` [N], and where each begins, `starts` [n] int64."""

    ids: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence `index`, int64."""
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.ids)
        return self.ids[self.starts[index] : end].astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """How many ids each sequence has, [n] int64."""
        return np.diff(self.starts, append=len(self.ids))


@dataclass(frozen=True)
class Corpus:
    """Documents by column, and how many UTF-8 bytes of text they are."""

    columns: Mapping[str, Column]
    bytes: int

    @property
    def tokens(self) -> np.ndarray:
        """The ids of texts end to end, [N]."""
        return self.columns["tokens"].ids

    @property
    def starts(self) -> np.ndarray:
        """Where each text begins among them, [documents] int64."""
        return self.columns["tokens"].starts

    @property
    def documents(self) -> int:
        """How many there are."""
        return len(next(iter(self.columns.values()), ()))

    @property
    def targets(self) -> int:
        """How many tokens of texts are predicted in all: every one but the first of each."""
        return len(self.tokens) - len(self.starts)


@dataclass(frozen=True)
class EncodedPart:
    """The ids of a document or of a part of one, by column: its split, whether a document begins here, its bytes of
    UTF-8. A document without columns is left out, and counted."""

    columns: Mapping[str, Sequence[int]]
    split: str
    is_first: bool
    bytes: int


#: Turns documents into ids.
Encode = Callable[[Iterable[Document]], Iterator[EncodedPart]]


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[EncodedPart]:
    """Tokenise texts in order. A document begins with the tokenizer's beginning-of-text token and ends with its
    end-of-text token, where it has them; so all of its text is predicted, and so is its end."""
    begins = [tokenizer.bos] if tokenizer.bos is not None else []
    ends = [tokenizer.eos] if tokenizer.eos is not None else []
    parts = ((document.split, *part) for document in documents for part in _parts(document))
    while batch := list(islice(parts, PARTS_AT_ONCE)):
        encoded = tokenizer.encode_batch([text for _, text, _, _ in batch], special=False)
        for (split, text, is_first, is_last), ids in zip(batch, encoded, strict=True):
            whole = (begins if is_first else []) + ids + (ends if is_last else [])
            yield EncodedPart({"tokens": whole}, split, is_first, len(text.encode("utf-8")))


def encode_records(
    documents: Iterable[Document], encode: Callable[[Sequence[Document]], Sequence[Mapping[str, Sequence[int]]]]
) -> Iterator[EncodedPart]:
    """Tokenise records in order by `encode`, which gives the columns of each; none for one that is to be left out.
    Their bytes are those of their fields as JSON."""
    documents = iter(documents)
    while batch := list(islice(documents, RECORDS_AT_ONCE)):
        for document, columns in zip(batch, encode(batch), strict=True):
            size = len(json.dumps(document.fields, ensure_ascii=False).encode("utf-8", "surrogatepass"))
            yield EncodedPart(columns, document.split, True, size)


def _parts(document: Document) -> Iterator[tuple[str, bool, bool]]:
    """A text in parts of whole lines: (part, does it begin the document, does it end it)."""
    text, begin = document.text, 0
    while begin < len(text):
        end = text.find("\n", begin + PART) + 1 or len(text)
        yield text[begin:end], document.begins and begin == 0, document.ends and end == len(text)
        begin = end


def write_corpus(
    directory: Path,
    documents: Iterable[Document],
    encode: Encode,
    *,
    vocabulary: int,
    about: Mapping[str, Any],
    advance: Callable[[int], object] = lambda size: None,
) -> None:
    """Tokenise `documents` into `directory`, ids below `vocabulary`, arrays for each split and column; `about` joins
    the manifest, `advance` is told of bytes of text done.

    The directory is written in place: who needs all or nothing gives one that stands aside, and renames it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
    splits: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}

        def append(name: str, array: np.ndarray) -> None:
            if name not in files:
                files[name] = stack.enter_context((directory / name).open("wb"))
            files[name].write(array.tobytes())

        for part in encode(documents):
            total = splits.setdefault(part.split, {"columns": {}, "documents": 0, "left_out": 0, "bytes": 0})
            lengths = total["columns"]
            for column, ids in part.columns.items():
                begin = lengths.setdefault(column, 0)
                if part.is_first:
                    append(f"{part.split}.{column}.starts", np.array(begin, dtype="<i8"))
                append(f"{part.split}.{column}.ids", np.array(ids, dtype=dtype))
                lengths[column] = begin + len(ids)
            total["documents" if part.columns else "left_out"] += part.is_first
            total["bytes"] += part.bytes if part.columns else 0
            advance(part.bytes)
        manifest = stack.enter_context((directory / "manifest.json").open("wb"))
        manifest.write(json.dumps({**about, "dtype": dtype.str, "splits": splits}, indent=2).encode())
        for file in (*files.values(), manifest):
            file.flush()
            os.fsync(file.fileno())


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a corpus on disk. Raises `DataError` where it is missing or broken."""
    try:
        return json.loads((directory / "manifest.json").read_bytes())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{directory} holds no tokenised corpus: {error}; start the run anew") from None


def open_corpus(directory: Path, split: str) -> Corpus:
    """Memory-map one split that `write_corpus` wrote. Raises `DataError` where a file is missing or of another size
    than its manifest says."""
    manifest = read_manifest(directory)
    said = manifest["splits"].get(split, {"columns": {}, "documents": 0, "bytes": 0})

    def mapped(name: str, dtype: np.dtype, count: int) -> np.ndarray:
        path = directory / name
        if not count:
            return np.empty(0, dtype)
        size = path.stat().st_size if path.is_file() else 0
        if size != count * dtype.itemsize:
            raise DataError(
                f"{path} should hold {count * dtype.itemsize:,} bytes and holds {size:,}; the tokenised corpus is "
                f"damaged: start the run anew in another directory"
            )
        return np.memmap(path, dtype, mode="r", shape=(count,))

    def column(name: str, count: int) -> Column:
        ids = mapped(f"{split}.{name}.ids", np.dtype(manifest["dtype"]), count)
        return Column(ids, mapped(f"{split}.{name}.starts", np.dtype("<i8"), said["documents"]))

    return Corpus({name: column(name, count) for name, count in said["columns"].items()}, said["bytes"])
