"""The verdict on attention without positions comes out each way."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.permutation import CHANCE, NAMES, judge


@pytest.mark.parametrize(
    ("difference", "without", "learned", "word"),
    [
        (1e-7, [CHANCE - 0.001, CHANCE + 0.002, CHANCE], 1.0, "holds"),
        (1e-3, [CHANCE - 0.001, CHANCE + 0.002, CHANCE], 1.0, "does not hold at this scale"),
        (1e-7, [0.5, 0.51, 0.52], 1.0, "does not hold at this scale"),
        (1e-7, [CHANCE - 0.001, CHANCE + 0.002, CHANCE], 0.5, "unclear"),
    ],
)
def test_verdict(difference: float, without: list[float], learned: float, word: str) -> None:
    """Answers that depend on the order refute it, or know it above chance; where nobody learns, nothing is said."""
    numbers = {name: {"differences": [0.1] * 3, "accuracies": [learned] * 3} for name in NAMES}
    numbers["full"] = {"differences": [difference] * 3, "accuracies": without}
    assert judge(numbers).word == word
