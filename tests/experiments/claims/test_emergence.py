"""Emergence: sums are sums, a jump is told from a slope, and the verdict comes out each way."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.experiments.claims.emergence import DIGITS, EQUALS, PLUS, judge, largest_step, sums

SUDDEN, STEADY = [0.0, 0.0, 0.0, 0.1, 1.0], [-2.0, -1.5, -1.0, -0.5, 0.0]


def _numbers(exact: list[float], smooth: list[float]) -> dict[str, Any]:
    """Two seeds that hardly differ, by size."""
    near = [[value, value + 0.001 * size] for size, value in enumerate(smooth)]
    return {"exact": [[value, value] for value in exact], "log_probability": near, "digits": 5}


def test_answers_are_the_sums_with_their_last_digit_first() -> None:
    """What is asked is one number more than the digits, and it is the sum of what stands before."""
    batch = sums(16, seed=3)(0)
    for tokens, targets in zip(batch["tokens"].tolist(), batch["targets"].tolist()):
        assert (tokens[DIGITS], tokens[2 * DIGITS + 1]) == (PLUS, EQUALS)
        one, other = tokens[:DIGITS], tokens[DIGITS + 1 : 2 * DIGITS + 1]
        answer = [target for target in targets if target >= 0]
        assert len(answer) == DIGITS + 1
        value = [sum(digit * 10**place for place, digit in enumerate(digits)) for digits in (one, other, answer)]
        assert value[0] + value[1] == value[2]


def test_a_jump_is_the_share_of_the_largest_step() -> None:
    """All at once is 1, evenly one over the steps."""
    assert largest_step([0, 0, 1, 1]) == 1
    assert largest_step(STEADY) == pytest.approx(1 / 4)


@pytest.mark.parametrize(
    ("exact", "smooth", "word"),
    [
        (SUDDEN, STEADY, "holds"),
        (SUDDEN, [-2.0, -2.0, -1.9, -1.8, 0.0], "does not hold at this scale"),
        ([0.0, 0.25, 0.5, 0.75, 1.0], [-2.0, -1.9, -1.8, -0.9, 0.0], "does not hold at this scale"),
        ([0.0, 0.2, 0.4, 0.7, 1.0], [-2.0, -1.6, -1.2, -0.6, 0.0], "unclear"),
        ([0.0, 0.0, 0.0, 0.0, 0.1], STEADY, "unclear"),
    ],
)
def test_comes_out_each_way(exact: list[float], smooth: list[float], word: str) -> None:
    """Sharp and smooth; both sharp; smooth jumps more; both alike; nothing that emerges."""
    assert judge(_numbers(exact, smooth)).word == word
