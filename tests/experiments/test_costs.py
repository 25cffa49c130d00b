"""Powers are found with honest intervals; seconds are medians of turns; bytes are those held at most."""

from __future__ import annotations

import sys
from functools import partial

import pytest

from anyformer.errors import ExperimentError
from anyformer.experiments.claims.bottleneck import BYTES, HEADS, _attention
from anyformer.experiments.costs import growth, most_bytes, seconds

SIZES = [64, 128, 256, 512, 1024]


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_finds_the_power_that_a_cost_grows_with(power: float) -> None:
    """Exactly, where it is one; and then no other is about right."""
    found = growth(SIZES, [3e-6 * size**power for size in SIZES])
    assert found.power == pytest.approx(power, abs=1e-9)
    assert found.high - found.low < 1e-6
    assert found.at(2048) == pytest.approx(3e-6 * 2048**power)
    assert [found.is_about(claimed) for claimed in (power - 0.5, power, power + 0.5)] == [False, True, False]
    assert [found.is_at_most(claimed) for claimed in (power - 0.5, power, power + 0.5)] == [False, True, True]


def test_what_is_no_power_widens_the_interval() -> None:
    """A constant beside a square: between the two, and not sure."""
    found = growth(SIZES, [1.0 + (size / 200) ** 2 for size in SIZES])
    assert found.low < found.power < found.high
    assert found.is_about(1.0) is None and found.is_at_most(1.0) is None


def test_ways_are_taken_in_turn() -> None:
    """Each once a round, one round more than are counted."""
    taken: list[str] = []
    found = seconds({"a": lambda: taken.append("a"), "b": lambda: taken.append("b")}, 2)
    assert taken == ["a", "b"] * 3
    assert found.keys() == {"a", "b"} and all(value >= 0 for value in found.values())


@pytest.mark.skipif(sys.platform != "linux", reason="only there a process may begin its peak anew")
def test_counts_what_is_held_at_most_and_not_what_is_left() -> None:
    """Attention holds all scores twice, before and after the softmax; what a longer text took before does not count."""
    scores = [HEADS * length**2 * BYTES for length in (2048, 1024)]
    found = most_bytes([partial(_attention, length, None) for length in (2048, 1024)])
    assert found == pytest.approx([2 * held for held in scores], rel=0.15)


def test_says_where_it_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a peak cannot be forgotten, and would be an earlier one's."""
    monkeypatch.setattr(sys, "platform", "another")
    with pytest.raises(ExperimentError, match="only be measured on Linux"):
        most_bytes([])
