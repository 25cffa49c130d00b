"""Curves as SVG paths: a run of any length becomes a few hundred points, and numbers become places on paper.

A chart is data for a template: paths in a box of `WIDTH` by `HEIGHT` units, which stretches with the page, and labels
with their places in per cent, which do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

WIDTH, HEIGHT = 2000, 1000
#: A curve has no more points than this; a longer one is drawn as the means, lowest and highest of equal stretches.
POINTS = 500
#: Of a smoothed curve's points, the share on each side that weighs about as much as all beyond them.
MEMORY = 0.03
#: The share of the highest and lowest values that may lie outside the picture: a run begins far above where anything
#: is to be seen, and a single step may be anywhere.
OUTSIDE = 0.1
TICKS = 5


@dataclass(frozen=True)
class Curve:
    """Values `y` over `x` as stretches of equal numbers of rows; NaN stands for none."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> Curve:
        """A curve of at most `POINTS` points through the values that are numbers."""
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        x, y = x[np.isfinite(y)], y[np.isfinite(y)]
        if not len(x):
            return cls(x, y, y, y)
        starts = np.unique(np.arange(min(POINTS, len(x))) * len(x) // min(POINTS, len(x)))
        counts = np.diff(starts, append=len(x))
        return cls(
            np.append(x[starts[1:] - 1], x[-1]),
            np.add.reduceat(y, starts) / counts,
            np.minimum.reduceat(y, starts),
            np.maximum.reduceat(y, starts),
        )

    def smoothed(self) -> Curve:
        """The same with means over neighbours on both sides, the nearer the more: a steep fall stays where it is."""
        keep = math.exp(-1 / max(MEMORY * len(self.mean), 1e-3))
        ahead, behind = _fading(self.mean, keep), _fading(self.mean[::-1], keep)[::-1]
        ones = np.ones_like(self.mean)
        weight = _fading(ones, keep) + _fading(ones, keep)[::-1] - 1
        means = (ahead + behind - self.mean) / weight
        return Curve(self.x, means, means, means)


def _fading(values: np.ndarray, keep: float) -> np.ndarray:
    """The sum at each place of all values up to it, each step back counted `keep` times less."""
    return np.array(list(accumulate(values.tolist(), lambda total, value: keep * total + value)))


@dataclass(frozen=True)
class Line:
    """A curve on paper: its style (a CSS class), its name in the legend if it stands there, and its path."""

    style: str
    name: str | None
    path: str


@dataclass(frozen=True)
class Chart:
    """What a template draws: lines over one another, ticks as (place in per cent, label), what a place stands for."""

    title: str
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    marks: str = field(default="")


def chart(
    title: str,
    curves: Sequence[tuple[str, str | None, Curve]],
    x_range: tuple[float, float],
    *,
    zero: bool = False,
    marks: Sequence[float] = (),
) -> Chart | None:
    """A chart of curves, each with its style and its name in the legend; None where no curve has a value.

    A curve of style `raw` becomes a band from its lowest to its highest values where it is long, and the others decide
    what is in view; `zero` puts 0 into view; `marks` are places on x to point out.
    """
    shown = [(style, name, curve) for style, name, curve in curves if len(curve.x)]
    deciding = [curve for style, _, curve in shown if style != "raw"] or [curve for _, _, curve in shown]
    if not shown:
        return None
    x_range = (x_range[0], max(x_range[1], x_range[0] + 1))
    y_range = in_view(np.concatenate([curve.mean for curve in deciding]), zero=zero)
    place = _Paper(x_range, y_range)
    lines = tuple(place.line(style, name, curve) for style, name, curve in shown)
    return Chart(
        title,
        lines,
        tuple((100 * place.across(x) / WIDTH, compact(x)) for x in ticks(*x_range)),
        tuple((100 * place.down(y) / HEIGHT, compact(y)) for y in ticks(*y_range)),
        x_range,
        y_range,
        "".join(f"M{place.across(x):.0f} {HEIGHT}v-40" for x in marks),
    )


def in_view(values: np.ndarray, *, zero: bool = False) -> tuple[float, float]:
    """The lowest and highest value to draw, with a margin; without the few that lie far above or below the others."""
    ordered = np.sort(values)
    inner = ordered[int(OUTSIDE * len(ordered)) : len(ordered) - int(OUTSIDE * len(ordered))]
    reach = max(float(inner[-1] - inner[0]), 1e-9)
    # What lies only a little outside belongs into the picture.
    near = ordered[(ordered >= inner[0] - 0.7 * reach) & (ordered <= inner[-1] + 0.7 * reach)]
    low, high = float(near[0]), float(near[-1])
    low = min(low, 0.0) if zero else low
    margin = 0.06 * (high - low) or 0.06 * abs(high) or 1.0
    return low - (0.0 if zero and low == 0 else margin), high + margin


def ticks(low: float, high: float) -> list[float]:
    """About `TICKS` round numbers between two."""
    raw = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9)), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def compact(value: float) -> str:
    """A number as short as it can be read: 1,500 is 1.5k, and 0.00012 is 1.2e-4."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.4g}{unit}"
    return f"{value:.4g}"


class _Paper:
    """Where a number lies in the box."""

    def __init__(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> None:
        self.x_range, self.y_range = x_range, y_range

    def across(self, x: float) -> float:
        return (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0]) * WIDTH

    def down(self, y: float) -> float:
        """From the top; what lies far outside is brought nearer, so that no number of a path is huge."""
        place = (self.y_range[1] - y) / (self.y_range[1] - self.y_range[0]) * HEIGHT
        return min(max(place, -5.0 * HEIGHT), 6.0 * HEIGHT)

    def line(self, style: str, name: str | None, curve: Curve) -> Line:
        """A line through the means; or of a raw curve whose points stand for several values, the band that holds them
        all. A single point is a line of no length, which round ends make a dot."""
        if style == "raw" and (curve.high > curve.low).any():
            band = [*self.places(curve.x, curve.high), *reversed(self.places(curve.x, curve.low))]
            return Line("band", name, "M" + "L".join(band) + "Z")
        points = self.places(curve.x, curve.mean)
        return Line(style, name, "M" + "L".join(points * 2 if len(points) == 1 else points))

    def places(self, x: np.ndarray, y: np.ndarray) -> list[str]:
        return [f"{self.across(each):.0f} {self.down(value):.0f}" for each, value in zip(x, y)]
