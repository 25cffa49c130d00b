"""Which windows a step trains on: a pure function of the seed and the step, so there is nothing to save or restore."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from anyformer.data.packing import Window, Windows
from anyformer.errors import DataError


class Loader:
    """Batches of `rows` windows. Every epoch takes each window once, in an order of its own; a batch at the border
    takes the last windows of one epoch and the first of the next.

    Raises `DataError` where the corpus is shorter than one window.
    """

    def __init__(self, windows: Windows, rows: int, seed: int) -> None:
        tokens = len(windows.corpus.tokens)
        if tokens < windows.length:
            raise DataError(
                f"the training data has {tokens:,} tokens, fewer than one window of {windows.length:,}; give more text "
                f"or a shorter training.sequence_length"
            )
        self.windows = windows
        self.rows = rows
        self.seed = seed

    def indices(self, step: int) -> list[int]:
        """The windows of step `step`, counted from 0."""
        epochs_and_places = (divmod(row, len(self.windows)) for row in range(step * self.rows, (step + 1) * self.rows))
        return [int(_order(len(self.windows), self.seed, epoch)[place]) for epoch, place in epochs_and_places]

    def batch(self, step: int) -> list[Window]:
        """The windows themselves of step `step`."""
        return [self.windows[index] for index in self.indices(step)]


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices below `count` (all, if fewer), evenly spread: the same windows at every validation."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]
