"""A tokenised corpus on disk, memory-mapped: documents end to end, in shards that read as one.

    DIRECTORY/manifest.json              what was tokenised, how much it came to, size and sha256 of every file
    DIRECTORY/00000/train.tokens.ids     ids, uint16 or uint32, little-endian
    DIRECTORY/00000/train.tokens.starts  where each document begins among the ids of all shards, int64, little-endian
    DIRECTORY/00001/...

A text has one column, `tokens`; a record has as many as its objective reads (`source` and `target` of a pair). The
arrays have no header: what they are stands in the manifest.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from anyformer.errors import DataError

#: Where a document begins among the ids of its column.
STARTS = np.dtype("<i8")


class Spliced:
    """Arrays of one dimension that read as one, end to end; what is asked for is copied, the rest stays where it is."""

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = [array for array in arrays if len(array)]
        self.begins = np.cumsum([0, *map(len, self.arrays)]).tolist()
        self.dtype = arrays[0].dtype

    def __len__(self) -> int:
        return self.begins[-1]

    @overload
    def __getitem__(self, wanted: slice) -> np.ndarray: ...
    @overload
    def __getitem__(self, wanted: int) -> np.generic: ...
    def __getitem__(self, wanted: slice | int) -> np.ndarray | np.generic:
        """One element, or a slice without steps. Raises `IndexError` beyond the end."""
        if isinstance(wanted, slice):
            begin, end, step = wanted.indices(len(self))
            assert step == 1
            found = [array[max(begin - first, 0) : end - first] for first, array in self._between(begin, end)]
            return np.concatenate(found) if found else np.empty(0, self.dtype)
        index = range(len(self))[wanted]
        place = bisect_right(self.begins, index) - 1
        return self.arrays[place][index - self.begins[place]]

    def _between(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        place = max(bisect_right(self.begins, begin) - 1, 0)
        while place < len(self.arrays) and self.begins[place] < end:
            yield self.begins[place], self.arrays[place]
            place += 1

    def searchsorted(self, values: Sequence[int], side: str = "left") -> list[int]:
        """As numpy's, for arrays that are sorted end to end."""
        firsts = [array[0] for array in self.arrays]
        found = []
        for value in values:
            place = max(int(np.searchsorted(firsts, value, side)) - 1, 0)  # type: ignore[call-overload]
            inside = self.arrays[place].searchsorted(value, side) if self.arrays else 0  # type: ignore[call-overload]
            found.append(self.begins[place] + int(inside))
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)


Array = np.ndarray | Spliced


@dataclass(frozen=True)
class Column:
    """Sequences of ids end to end: `ids` [N], and where each begins, `starts` [n] int64."""

    ids: Array
    starts: Array

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> np.ndarray:
        """Sequence `index`, int64."""
        end = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.ids)
        return self.ids[int(self.starts[index]) : int(end)].astype(np.int64)

    @property
    def lengths(self) -> np.ndarray:
        """How many ids each sequence has, [n] int64."""
        return np.diff(np.asarray(self.starts), append=len(self.ids))


@dataclass(frozen=True)
class Corpus:
    """Documents by column, and how many UTF-8 bytes of text they are."""

    columns: Mapping[str, Column]
    bytes: int

    @property
    def tokens(self) -> Array:
        """The ids of texts end to end, [N]."""
        return self.columns["tokens"].ids

    @property
    def starts(self) -> Array:
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
    said = manifest["splits"].get(split, {"columns": {}, "bytes": 0})

    def mapped(name: str, dtype: np.dtype) -> Array:
        sizes = {shard["name"]: shard["files"].get(name, {"size": 0})["size"] for shard in manifest["shards"]}
        arrays = [_mapped(directory / shard / name, dtype, size) for shard, size in sizes.items() if size]
        match arrays:
            case []:
                return np.empty(0, dtype)
            case [array]:
                return array
        return Spliced(arrays)

    ids = np.dtype(manifest["dtype"])
    columns = {
        name: Column(mapped(f"{split}.{name}.ids", ids), mapped(f"{split}.{name}.starts", STARTS))
        for name in said["columns"]
    }
    return Corpus(columns, said["bytes"])


def _mapped(path: Path, dtype: np.dtype, size: int) -> np.ndarray:
    has = path.stat().st_size if path.is_file() else 0
    if has != size:
        raise DataError(
            f"{path} should hold {size:,} bytes and holds {has:,}; the tokenised corpus is damaged: start the run anew "
            f"in another directory"
        )
    return np.memmap(path, dtype, mode="r", shape=(size // dtype.itemsize,))
