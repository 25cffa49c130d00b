"""A corpus as one array of token ids on disk: documents end to end, tokenised once, memory-mapped ever after.

    DIRECTORY/train.tokens       N ids, uint16 or uint32, little-endian
    DIRECTORY/train.starts       where each document begins, int64, little-endian
    DIRECTORY/manifest.json      what was tokenised, and how much it came to

The arrays have no header: what they are stands in the manifest, which is written last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from anyformer.data.sources import Document
from anyformer.errors import DataError

if TYPE_CHECKING:
    from anyformer.text import Tokenizer

#: Texts longer than this many characters are tokenised in parts of whole lines, so that memory stays bounded.
PART = 1 << 20
#: How many parts are handed to the tokenizer at once; it spreads them over the cores.
PARTS_AT_ONCE = 32


@dataclass(frozen=True)
class Corpus:
    """Documents end to end: `tokens` [N] ids, `starts` [documents] int64, and how many UTF-8 bytes of text they are."""

    tokens: np.ndarray
    starts: np.ndarray
    bytes: int

    @property
    def targets(self) -> int:
        """How many tokens are predicted in all: every one but the first of each document."""
        return len(self.tokens) - len(self.starts)


@dataclass(frozen=True)
class EncodedPart:
    """The token ids of a document or of a part of one: its split, whether a document begins here, its UTF-8 bytes."""

    ids: list[int]
    split: str
    is_first: bool
    bytes: int


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[EncodedPart]:
    """Tokenise documents in order. A document begins with the tokenizer's beginning-of-text token and ends with its
    end-of-text token, where it has them; so all of its text is predicted, and so is its end."""
    begins = [tokenizer.bos] if tokenizer.bos is not None else []
    ends = [tokenizer.eos] if tokenizer.eos is not None else []
    parts = ((document.split, *part) for document in documents for part in _parts(document.text))
    while batch := list(islice(parts, PARTS_AT_ONCE)):
        encoded = tokenizer.encode_batch([text for _, text, _, _ in batch], special=False)
        for (split, text, is_first, is_last), ids in zip(batch, encoded, strict=True):
            whole = (begins if is_first else []) + ids + (ends if is_last else [])
            yield EncodedPart(whole, split, is_first, len(text.encode("utf-8")))


def _parts(text: str) -> Iterator[tuple[str, bool, bool]]:
    """A text in parts of whole lines: (part, is it the first, is it the last)."""
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + PART) + 1 or len(text)
        yield text[begin:end], begin == 0, end == len(text)
        begin = end


def write_corpus(
    directory: Path,
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    *,
    about: Mapping[str, Any],
    advance: Callable[[int], object] = lambda size: None,
) -> None:
    """Tokenise `documents` into `directory`, an array for each split; `about` joins the manifest, `advance` is told of
    bytes of text done.

    The directory is written in place: who needs all or nothing gives one that stands aside, and renames it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    dtype = np.dtype("<u2" if tokenizer.vocabulary_size <= 1 << 16 else "<u4")
    splits: dict[str, dict[str, int]] = {}
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for part in encode_documents(documents, tokenizer):
            if part.split not in splits:
                splits[part.split] = {"tokens": 0, "documents": 0, "bytes": 0}
                for name in (f"{part.split}.tokens", f"{part.split}.starts"):
                    files[name] = stack.enter_context((directory / name).open("wb"))
            total = splits[part.split]
            if part.is_first:
                files[f"{part.split}.starts"].write(np.array(total["tokens"], dtype="<i8").tobytes())
            files[f"{part.split}.tokens"].write(np.array(part.ids, dtype=dtype).tobytes())
            total["tokens"] += len(part.ids)
            total["documents"] += part.is_first
            total["bytes"] += part.bytes
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
    said = manifest["splits"].get(split, {"tokens": 0, "documents": 0, "bytes": 0})

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

    tokens = mapped(f"{split}.tokens", np.dtype(manifest["dtype"]), said["tokens"])
    starts = mapped(f"{split}.starts", np.dtype("<i8"), said["documents"])
    return Corpus(tokens, starts, said["bytes"])
