"""Intervals against published quantiles, and what they promise against random samples."""

from __future__ import annotations

import random
from math import inf, nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.comparing.statistics import difference, sample, student
from anyformer.errors import InputError


@pytest.mark.parametrize(
    ("confidence", "freedom", "t"),
    [
        (0.95, 1, 12.706204736),
        (0.95, 2, 4.302652730),
        (0.95, 3, 3.182446305),
        (0.95, 4, 2.776445105),
        (0.95, 9, 2.262157163),
        (0.95, 30, 2.042272456),
        (0.95, 1000, 1.962339081),
        (0.99, 1, 63.656741163),
        (0.99, 5, 4.032142984),
        (0.8, 2, 1.885618083),
        (0.5, 10, 0.699812061),
    ],
)
def test_quantiles_are_the_published_ones(confidence: float, freedom: int, t: float) -> None:
    """Tables of Student's t, to nine places."""
    assert student(confidence, freedom) == pytest.approx(t, rel=1e-9)


@given(st.floats(0.001, 0.999), st.floats(0.001, 0.999), st.integers(1, 200))
def test_more_confidence_reaches_further(one: float, other: float, freedom: int) -> None:
    """The quantile rises with confidence and falls with degrees of freedom."""
    low, high = sorted((one, other))
    assert student(low, freedom) <= student(high, freedom)
    assert student(high, freedom + 1) <= student(high, freedom) * (1 + 1e-12)


def test_a_difference_is_worked_out_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, spread 1, t of two degrees of freedom over √3."""
    found = difference([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    reach = 4.302652730 / sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2 - reach, 2 + reach))
    assert found.larger_than_noise is False and found.in_words == "not larger than the noise"


def test_what_pairs_share_is_no_noise() -> None:
    """Losses that vary much over seeds, and by the same amount: the difference is found all the same."""
    theirs = [3.0, 2.0, 4.0]
    found = difference([2.9, 1.89, 3.91], theirs)
    assert found.larger_than_noise is True and found.in_words == "lower, larger than the noise"
    assert difference(theirs, [2.9, 1.89, 3.91]).in_words == "higher, larger than the noise"


def test_a_single_seed_leaves_the_noise_unknown() -> None:
    """No interval is made up where there is none."""
    found = difference([2.0], [1.0])
    assert (found.mean, found.low, found.high, found.larger_than_noise) == (1.0, None, None, None)
    assert "unknown" in found.in_words
    assert sample([2.0]).spread is None


def test_equal_results_do_not_differ() -> None:
    """A difference of nothing at all is not larger than a noise of nothing."""
    assert difference([1.5, 2.5], [1.5, 2.5]).larger_than_noise is False


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of 2,000 samples of four pairs around 0, about one in twenty is called more than noise."""
    chance = random.Random(0)
    called = [
        difference([chance.gauss(0, 1) for _ in range(4)], [chance.gauss(0, 1) for _ in range(4)]).larger_than_noise
        for _ in range(2000)
    ]
    assert 0.03 < sum(map(bool, called)) / len(called) < 0.07


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ([1.0], [1.0, 2.0], "1 and 2 values are no pairs"),
        ([], [], "no values"),
        ([nan, 1.0], [1.0, 1.0], "nan among the values"),
        ([1.0, 1.0], [1.0, inf], "inf among the values"),
    ],
)
def test_what_cannot_be_compared_is_refused(ours: list[float], theirs: list[float], says: str) -> None:
    """One sentence says which values."""
    with pytest.raises(InputError, match=says):
        difference(ours, theirs)


def test_a_confidence_is_a_share() -> None:
    """95 is no confidence; 0.95 is."""
    with pytest.raises(InputError, match="between 0 and 1"):
        difference([1.0, 2.0], [1.0, 1.0], confidence=95)
