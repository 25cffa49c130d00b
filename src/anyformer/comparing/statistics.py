"""What differs, and what is noise: the mean and spread of a sample, and the mean of paired differences with its
confidence interval (Student 1908). Numbers alone; no run, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, isfinite, pi, sin, sqrt, tan

from anyformer.errors import InputError

#: How often an interval is to hold the truth.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Sample:
    """The mean of `count` values, and their spread: the sample's standard deviation (n - 1), None of a single one."""

    mean: float
    spread: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and the interval that holds the true one as often as `confidence` says.

    Fewer than two pairs leave the noise unknown: `low`, `high` and `larger_than_noise` are None.
    """

    mean: float
    low: float | None
    high: float | None
    larger_than_noise: bool | None
    confidence: float = CONFIDENCE

    @property
    def in_words(self) -> str:
        """Whether it is larger than the noise, as one says it."""
        match self.larger_than_noise:
            case None:
                return "unknown: the noise shows only over two seeds or more"
            case True:
                return f"{'lower' if self.mean < 0 else 'higher'}, larger than the noise"
            case False:
                return "not larger than the noise"


def sample(values: Sequence[float]) -> Sample:
    """The mean and spread of values. Raises `InputError` where there are none, or one is not finite."""
    _check(values)
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Sample(mean, None, len(values))
    return Sample(mean, sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)), len(values))


def difference(ours: Sequence[float], theirs: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """By how much `ours` exceed `theirs`, value by value: two results of one seed, or of one document, are a pair.

    What a pair has in common, such as the order of the data, is no noise of the difference. The interval is Student's:
    mean ± t·s/√n, with s the spread of the differences and n - 1 degrees of freedom. Raises `InputError` where values
    are not paired or not finite.
    """
    if len(ours) != len(theirs):
        raise InputError(f"{len(ours)} and {len(theirs)} values are no pairs; give as many of one as of the other")
    _check(ours)
    _check(theirs)
    differences = sample([one - other for one, other in zip(ours, theirs)])
    if differences.spread is None:
        return Difference(differences.mean, None, None, None, confidence)
    reach = student(confidence, differences.count - 1) * differences.spread / sqrt(differences.count)
    low, high = differences.mean - reach, differences.mean + reach
    return Difference(differences.mean, low, high, not low <= 0 <= high, confidence)


def student(confidence: float, freedom: int) -> float:
    """The t that a t-distributed number of so many degrees of freedom stays within, on either side of 0, as often as
    `confidence` says: 2.776 for 0.95 and 4.

    Sought where t = √freedom·tan θ, because all t there are lie between two angles.
    """
    if not 0 < confidence < 1:
        raise InputError(f"a confidence of {confidence:g} is no share; give one between 0 and 1, such as 0.95")
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _within(middle, freedom) < confidence:
            low = middle
        else:
            high = middle
    return sqrt(freedom) * tan(low)


def _within(angle: float, freedom: int) -> float:
    """How often |t| stays below √freedom·tan(angle): the finite sums of Abramowitz & Stegun 1964, 26.7.3 and 26.7.4."""
    is_odd = freedom % 2
    total, term = 0.0, cos(angle) if is_odd else 1.0
    for power in range(2 + is_odd, freedom + 1, 2):
        total += term
        term *= cos(angle) ** 2 * (power - 1) / power
    return 2 / pi * (angle + sin(angle) * total) if is_odd else sin(angle) * total


def _check(values: Sequence[float]) -> None:
    if not values:
        raise InputError("there are no values to compare; give at least one")
    for value in values:
        if not isfinite(value):
            raise InputError(f"{value} among the values is no result that can be compared; leave its pair out")
