"""A run's curve in a terminal."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from anyformer.training.watching.curve import STRETCHES, Curves, Means, limits

BRAILLE = "".join(map(chr, range(0x2800, 0x2900)))


def drawn(means: Means, width: int = 40, height: int = 3) -> list[str]:
    """The lines of a curve without colours, labels included."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    return "".join(
        segment.text for segment in Curves([(means, "cyan")], height).__rich_console__(console, console.options)
    ).splitlines()


def dots(lines: list[str]) -> set[tuple[int, int]]:
    """The dots (x, y) that are set, behind the labels."""
    offsets = {0x01: (0, 0), 0x02: (0, 1), 0x04: (0, 2), 0x40: (0, 3), 0x08: (1, 0), 0x10: (1, 1), 0x20: (1, 2)}
    offsets[0x80] = (1, 3)
    return {
        (2 * column + x, 4 * row + y)
        for row, line in enumerate(lines)
        for column, character in enumerate(line[len(lines[0].rstrip(BRAILLE)) :])
        for bit, (x, y) in offsets.items()
        if (ord(character) - 0x2800) & bit
    }


def test_a_falling_curve_falls() -> None:
    """From the upper left to the lower right, a dot in every column, labelled with the values at top and bottom."""
    means = Means(STRETCHES)
    for step in range(STRETCHES):
        means.add(step, 3.0 - step / STRETCHES)
    lines = drawn(means)
    highest = {x: min(y for at, y in dots(lines) if at == x) for x, _ in dots(lines)}
    assert list(highest) and sorted(highest) == list(range(2 * (40 - 9)))
    heights = [highest[x] for x in sorted(highest)]
    assert heights == sorted(heights) and heights[0] == 0 and heights[-1] >= 10
    assert lines[-1].split()[0].startswith("2.00") and float(lines[0].split()[0]) > 2.7


@given(st.lists(st.floats(-1e6, 1e6), max_size=60), st.integers(1, 10_000), st.integers(10, 80))
def test_any_values_are_drawn_within_the_room(values: list[float], steps: int, width: int) -> None:
    """However few or many, wild or equal they are; and there is a dot if there is a value."""
    means = Means(steps)
    for at, value in enumerate(values[:steps]):
        means.add(at, value)
    lines = drawn(means, width, 2)
    assert len(lines) == 2 and all(len(line) <= max(width - 1, 13) for line in lines)
    assert bool(dots(lines)) == bool(values[:steps])


def test_memory_does_not_grow_with_steps() -> None:
    """A million steps are as many numbers as ten, and a mean of each stretch is what is left of them."""
    means = Means(1_000_000)
    for step in range(0, 1_000_000, 100):
        means.add(step, float(step))
    assert len(means._sums) == STRETCHES
    (first, *_, last) = means.points(10)
    assert first == (0, 49_950.0) and last == (9, 949_950.0)


def test_the_first_values_of_a_run_do_not_flatten_the_rest() -> None:
    """The highest few are cut off at the top."""
    assert limits([9.0, 5.0, *[1.0 + step / 100 for step in range(18)]]) == (1.0, 1.16)
    assert limits([2.0]) == (2.0, 2.001) and limits([]) == (0.0, 1.0)
