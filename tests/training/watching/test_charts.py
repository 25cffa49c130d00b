"""From the rows of a run to paths on paper."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer.training.watching.charts import HEIGHT, POINTS, WIDTH, Curve, chart, compact, in_view, ticks

FINITE = st.floats(-1e9, 1e9, allow_subnormal=False)


@given(st.lists(FINITE | st.just(math.nan), max_size=2000))
def test_a_long_curve_keeps_its_mean_lowest_and_highest(values: list[float]) -> None:
    """Whatever its length, and whatever is no number in it."""
    curve = Curve.of(range(len(values)), values)
    known = [value for value in values if math.isfinite(value)]
    assert len(curve.x) == min(len(known), POINTS)
    if known:
        assert (curve.low.min(), curve.high.max()) == (min(known), max(known))
        assert curve.x[-1] == max(at for at, value in enumerate(values) if math.isfinite(value))
        assert np.all(np.diff(curve.x) > 0)
        assert np.all(curve.low <= curve.high)
    if 0 < len(known) <= POINTS:
        assert np.array_equal(curve.mean, known)


def test_a_smoothed_curve_follows_and_lies_within() -> None:
    """A few points stay what they are; many, with noise, come close to what is behind them."""
    few = Curve.of([1, 2, 3], [3.0, 1.0, 2.0])
    assert np.allclose(few.smoothed().mean, few.mean, atol=1e-3)
    noise = np.random.default_rng(0).normal(0, 1, 5000)
    smooth = Curve.of(range(5000), 4 + noise).smoothed()
    assert abs(smooth.mean[50:] - 4).max() < 0.35 < np.abs(noise).max()


@given(FINITE, st.floats(1e-6, 1e9))
def test_ticks_are_round_few_and_within(low: float, reach: float) -> None:
    """Their distance is 1, 2, 2.5 or 5 times a power of ten."""
    if abs(low) > 1e6 * reach:
        return
    found = ticks(low, low + reach)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-6 * reach <= tick <= low + reach * (1 + 1e-6) for tick in found)
    step = (found[-1] - found[0]) / (len(found) - 1)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - good) for good in (1, 2, 2.5, 5, 10)) < 1e-2


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (1500, "1.5k"), (2_269_184, "2.269M"), (3e9, "3G"), (0.0002, "2e-4"), (-0.25, "-0.25"), (12.5, "12.5")],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    """As on the axes and tiles."""
    assert compact(value) == shown


def test_the_beginning_of_a_run_does_not_flatten_the_rest() -> None:
    """A few steep values are left to run out of the picture; with a wide spread throughout, all is in view."""
    falling = np.array([9.0, 6.0, 4.0, *np.linspace(2.0, 1.0, 60)])
    low, high = in_view(falling)
    assert 0.9 < low < 1.0 and 2.0 < high < 4.0
    assert in_view(np.linspace(0, 10, 50), zero=True)[0] == 0.0
    low, high = in_view(np.array([5.0]))
    assert low < 5.0 < high


def test_a_chart_draws_within_its_box_and_labels_it() -> None:
    """Paths are numbers in the box's units; a long raw curve is a closed band, a short one a line; a single point is
    drawn; where there is nothing there is no chart."""
    steps = np.arange(1, 5001)
    raw = Curve.of(steps, 4 - steps / 5000 + np.sin(steps))
    made = chart("Loss", [("raw", "training", raw), ("smooth", None, raw.smoothed())], (0, 5000), marks=[2500])
    assert made is not None
    band, smooth = made.lines
    assert band.style == "band" and band.path.endswith("Z") and band.name == "training"
    numbers = [tuple(map(float, point.split())) for point in smooth.path[1:].split("L")]
    assert len(numbers) == POINTS and all(0 <= x <= WIDTH and -HEIGHT <= y <= 2 * HEIGHT for x, y in numbers)
    assert made.marks == f"M1000 {HEIGHT}v-40"
    assert [label for _, label in made.x_ticks] == ["0", "1k", "2k", "3k", "4k", "5k"]
    assert [place for place, _ in made.x_ticks] == [0, 20, 40, 60, 80, 100]
    one = chart("Loss", [("raw", None, Curve.of([1], [2.0]))], (0, 1))
    assert one is not None and re.fullmatch(r"M(2000 \d+)L\1", one.lines[0].path)
    assert chart("Loss", [("raw", None, Curve.of([], [])), ("smooth", None, Curve.of([1], [math.nan]))], (0, 1)) is None
