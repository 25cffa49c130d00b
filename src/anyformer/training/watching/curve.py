"""A curve of a whole run in a terminal: two dots across and four down in every character (Unicode's braille)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment
from rich.style import Style

#: The bits of a braille character's dots, by row, left and right.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
#: A run is kept as the means of so many equal stretches, however long it is.
STRETCHES = 480
#: The share of the highest values that is left out of the picture: a run begins far above where anything is to be seen.
SPIKES = 0.15


class Means:
    """Values along a run of known length, as the means of equal stretches of it: memory does not grow with steps."""

    def __init__(self, length: int) -> None:
        self.length = max(length, 1)
        self._sums, self._counts = [0.0] * STRETCHES, [0] * STRETCHES

    def add(self, at: int, value: float) -> None:
        """Take in the value of position `at`, from 0."""
        stretch = min(at * STRETCHES // self.length, STRETCHES - 1)
        self._sums[stretch] += value
        self._counts[stretch] += 1

    def points(self, columns: int) -> list[tuple[int, float]]:
        """(column, mean) of those of `columns` equal columns that have any value."""
        found = []
        for column in range(columns):
            stretches = slice(column * STRETCHES // columns, (column + 1) * STRETCHES // columns)
            if count := sum(self._counts[stretches]):
                found.append((column, sum(self._sums[stretches]) / count))
        return found


class Curves:
    """Curves over one another, drawn as wide as there is room and `height` lines high; the last one lies on top."""

    def __init__(self, curves: Sequence[tuple[Means, str]], height: int = 7) -> None:
        self.curves, self.height = curves, height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        found = [value for means, _ in self.curves for _, value in means.points(STRETCHES)]
        low, high = limits(found)
        labels = {0: f"{high:#7.4g} ", self.height - 1: f"{low:#7.4g} "} if found else {0: ""}
        margin = max(map(len, labels.values()))
        width = min(max(options.max_width - margin - 1, 1), STRETCHES // 2)
        drawn = [(means.points(2 * width), style) for means, style in self.curves]
        cells: dict[tuple[int, int], tuple[int, str]] = {}
        for points, style in drawn:
            for x, y in _dots(points, low, high, 4 * self.height):
                cell, dot = (y // 4, x // 2), DOTS[y % 4][x % 2]
                cells[cell] = (cells.get(cell, (0, style))[0] | dot, style)
        for row in range(self.height):
            yield Segment(labels.get(row, "").rjust(margin), Style(dim=True))
            for column in range(width):
                bits, style = cells.get((row, column), (0, ""))
                yield Segment(chr(0x2800 + bits), console.get_style(style))
            yield Segment.line()


def limits(values: Sequence[float]) -> tuple[float, float]:
    """The lowest and highest value to draw, the latter without the few at the top."""
    ordered = sorted(values)
    if not ordered:
        return 0.0, 1.0
    low, high = ordered[0], ordered[-1 - int(SPIKES * len(ordered))]
    return low, high if high > low else low + 1e-3


def _dots(points: Sequence[tuple[int, float]], low: float, high: float, rows: int) -> Iterator[tuple[int, int]]:
    """The dots (x, y from the top) of a line through `points`."""

    def down(value: float) -> int:
        return round((high - min(max(value, low), high)) / (high - low) * (rows - 1))

    if len(points) == 1:
        yield points[0][0], down(points[0][1])
    for (x, value), (next_x, next_value) in pairwise(points):
        y, next_y = down(value), down(next_value)
        steps = max(next_x - x, abs(next_y - y))
        for step in range(steps + 1):
            yield x + round((next_x - x) * step / steps), y + round((next_y - y) * step / steps)
