"""Which examples a step trains on: a pure function of the seed and the step, so there is nothing to save or restore."""

from __future__ import annotations

from functools import lru_cache
from typing import Generic, Protocol, TypeVar

import numpy as np

from anyformer.errors import DataError

Example = TypeVar("Example", covariant=True)


class Examples(Protocol[Example]):
    """What can be trained on, by index."""

    def __getitem__(self, index: int, /) -> Example: ...

    @property
    def sizes(self) -> np.ndarray:
        """How many tokens a model reads of each, [n] int64."""
        ...


class Loader(Generic[Example]):
    """Batches of about `batch_tokens` tokens of whole examples. Every epoch takes each example once, in an order of
    its own; a batch at the border takes the last of one epoch and the first of the next.

        step           0               1
        tokens    |---------------|---------------|
        examples  aaaa bbbbbb cccccc dd eeeeeee ff ...     one belongs to the step that it begins in

    Raises `DataError` where an example is larger than a batch.
    """

    def __init__(self, examples: Examples[Example], batch_tokens: int, seed: int) -> None:
        self.examples, self.batch_tokens, self.seed = examples, batch_tokens, seed
        self.sizes = examples.sizes
        self.total = int(self.sizes.sum())
        if not self.total:
            raise DataError("the training data has no example that can be trained on; give more, or longer ones")
        if (longest := int(self.sizes.max())) > batch_tokens:
            raise DataError(
                f"an example of the training data has {longest:,} tokens, more than training.batch_tokens="
                f"{batch_tokens:,}; give a larger batch or a shorter training.sequence_length"
            )
        # An epoch's order is as long as the corpus: made once for all of its steps.
        self._epoch = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples in the order of an epoch, and the token of the epoch that each begins at."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.sizes))
        return order, np.cumsum(self.sizes[order]) - self.sizes[order]

    def indices(self, step: int) -> list[int]:
        """The examples of step `step`, counted from 0."""
        found: list[int] = []
        place, end = step * self.batch_tokens, (step + 1) * self.batch_tokens
        while place < end:
            epoch, offset = divmod(place, self.total)
            order, begins = self._epoch(epoch)
            low, high = np.searchsorted(begins, (offset, offset + end - place))
            found += order[low:high].tolist()
            place = (epoch + 1) * self.total
        return found

    def batch(self, step: int) -> list[Example]:
        """The examples themselves of step `step`."""
        return [self.examples[index] for index in self.indices(step)]


def spread(count: int, wanted: int) -> list[int]:
    """`wanted` indices below `count` (all, if fewer), evenly spread: the same windows at every validation."""
    wanted = min(count, wanted)
    return [index * count // wanted for index in range(wanted)]
