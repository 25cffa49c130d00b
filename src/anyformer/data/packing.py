"""A corpus as examples, with nothing wasted and no document leaking into another: a text cut into windows, or records
whole.

    stream     a a a a . b b . c c c c c c . d d d     (. is the end of text; each letter a document)
    windows   [a a a a . b b .][c c c c c c . d][d d - ...
    documents  (5, 3)           (7, 1)           what may see each other, as host integers
    targets    a a a . × b . ×  c c c c c . × d        what follows in the same document; × is none

A document that a window cuts goes on in the next one, positions counted afresh; the token behind the cut is still a
target. So every token but the first of each document is a target exactly once, and only the last window of a corpus
has padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anyformer.data.corpus import Corpus

#: In place of a target where there is none, as `F.cross_entropy` has it.
NO_TARGET = -100


@dataclass(frozen=True)
class Window:
    """One row of a batch: `tokens` [T] int64; `targets` [T] int64, the id that follows or `NO_TARGET`; the lengths of
    the documents side by side in it, which sum to T. Padding is a document without targets, the last one; `filled`
    tokens stand before it."""

    tokens: np.ndarray
    targets: np.ndarray
    documents: tuple[int, ...]
    filled: int

    @property
    def size(self) -> int:
        """How many tokens a model reads of it."""
        return len(self.tokens)


class Windows:
    """A corpus of texts as a sequence of windows, each `length` tokens long, cut when asked for."""

    def __init__(self, corpus: Corpus, length: int) -> None:
        self.corpus = corpus
        self.length = length

    @property
    def sizes(self) -> np.ndarray:
        """How many tokens each window has, [windows] int64."""
        return np.full(len(self), self.length)

    def __len__(self) -> int:
        return -(-len(self.corpus.tokens) // self.length)

    def __getitem__(self, index: int) -> Window:
        """Window `index`. Raises `IndexError` beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} windows, so none of index {index}")
        begin = index * self.length
        end = min(begin + self.length, len(self.corpus.tokens))
        # Starts after `begin` end a document inside this window; one at `end` cuts off the last target.
        low, high = self.corpus.starts.searchsorted((begin, end), side="right")
        ends = self.corpus.starts[low:high] - begin
        stream = self.corpus.tokens[begin : end + 1].astype(np.int64)

        tokens = np.zeros(self.length, np.int64)
        tokens[: end - begin] = stream[: end - begin]
        targets = np.full(self.length, NO_TARGET, np.int64)
        targets[: len(stream) - 1] = stream[1:]
        targets[ends - 1] = NO_TARGET
        borders = sorted({0, *ends.tolist(), end - begin, self.length})
        return Window(tokens, targets, tuple(np.diff(borders).tolist()), end - begin)


@dataclass(frozen=True)
class Record:
    """An example that is trained on whole: its columns, each int64, and how many tokens a model reads of it."""

    columns: Mapping[str, np.ndarray]
    size: int

    def __getitem__(self, name: str) -> np.ndarray:
        """The column of that name."""
        return self.columns[name]


class Records:
    """A corpus as a sequence of whole records; `read` names the columns whose tokens a model reads."""

    def __init__(self, corpus: Corpus, read: Sequence[str]) -> None:
        self.columns = corpus.columns
        self.sizes = np.asarray(np.sum([corpus.columns[name].lengths for name in read], axis=0, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Record:
        """Record `index`."""
        return Record({name: column[index] for name, column in self.columns.items()}, int(self.sizes[index]))
