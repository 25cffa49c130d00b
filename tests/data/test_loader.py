"""The order of windows: a pure function of seed and step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.data import Column, Corpus, Loader, Windows, spread
from anyformer.errors import DataError


def loader(windows: int, rows: int, seed: int = 0) -> Loader:
    column = Column(np.arange(windows * 4, dtype="<u2"), np.array([0]))
    return Loader(Windows(Corpus({"tokens": column}, 1), 4), 4 * rows, seed)


class Sized:
    """Examples that are their index, of given sizes."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = np.array(sizes)

    def __getitem__(self, index: int) -> int:
        return index


@given(st.integers(1, 40), st.integers(1, 16), st.integers(0, 5))
def test_every_epoch_takes_each_window_once(windows: int, rows: int, seed: int) -> None:
    """However batches and epochs fall, also with batches larger than an epoch."""
    feed = loader(windows, rows, seed)
    rows_in_order = [index for step in range(3 * windows) for index in feed.indices(step)]
    for epoch in range(len(rows_in_order) // windows):
        assert sorted(rows_in_order[epoch * windows : (epoch + 1) * windows]) == list(range(windows))


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=10))
def test_a_step_needs_no_step_before_it(steps: list[int]) -> None:
    """Asked in any order, by loaders that never met, step s has the same windows."""
    one, other = loader(50, 8), loader(50, 8)
    wanted = {step: one.indices(step) for step in sorted(steps)}
    assert {step: other.indices(step) for step in reversed(steps)} == wanted
    assert [window.tokens.tolist() for window in other.batch(steps[0])] == [
        list(range(4 * index, 4 * index + 4)) for index in wanted[steps[0]]
    ]


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    """Otherwise every epoch would repeat the batches of the first."""
    orders = [loader(100, 100, seed).indices(epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@given(st.lists(st.integers(1, 20), min_size=1, max_size=40), st.integers(20, 60), st.integers(0, 5))
def test_examples_of_any_size_fill_batches(sizes: list[int], batch_tokens: int, seed: int) -> None:
    """No step is without examples, every epoch takes each once, and steps have as many tokens as asked for on average,
    off by no more than the largest example at either end."""
    feed = Loader(Sized(sizes), batch_tokens, seed)
    batches = [feed.batch(step) for step in range(12)]
    assert all(batches)
    order = [example for batch in batches for example in batch]
    for epoch in range(len(order) // len(sizes)):
        assert sorted(order[epoch * len(sizes) : (epoch + 1) * len(sizes)]) == list(range(len(sizes)))
    taken = np.cumsum([sum(sizes[example] for example in batch) for batch in batches])
    assert all(0 <= total - batch_tokens * (step + 1) < max(sizes) for step, total in enumerate(taken))


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=10))
def test_a_step_of_examples_needs_no_step_before_it(steps: list[int]) -> None:
    """Asked in any order, step s has the same examples."""
    sizes = list(range(1, 30))
    wanted = {step: Loader(Sized(sizes), 50, 1).indices(step) for step in sorted(steps)}
    other = Loader(Sized(sizes), 50, 1)
    assert {step: other.indices(step) for step in reversed(steps)} == wanted


def test_an_example_larger_than_a_batch_is_refused() -> None:
    """With the numbers and what to change; and so is a corpus without any."""
    with pytest.raises(DataError, match=r"has 9 tokens, more than training.batch_tokens=8"):
        Loader(Sized([3, 9]), 8, 0)
    with pytest.raises(DataError, match="no example"):
        Loader(Sized([]), 8, 0)


@given(st.integers(1, 1000), st.integers(1, 1000))
def test_validation_windows_are_spread_and_differ(count: int, wanted: int) -> None:
    """As many as wanted, or all; none twice; from the first on, evenly."""
    chosen = spread(count, wanted)
    assert len(set(chosen)) == len(chosen) == min(count, wanted) and chosen[0] == 0 and max(chosen) < count
    gaps = np.diff(chosen)
    assert len(gaps) == 0 or max(gaps) - min(gaps) <= 1
