"""Induction is judged by when the gain comes, by whose it is, and by what one layer gains."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.induction import judge

LOOKS = 40


def run(layers: int, falls: int, rises: int, without: float, end: float = 0.1) -> dict:
    """A loss that falls from one look to the next, a score that rises at another."""
    loss = [3.0 if look < falls else end for look in range(LOOKS)]
    score = [0.05 if look < rises else 0.9 for look in range(LOOKS)]
    return {
        "layers": layers,
        "seed": 0,
        "loss": loss,
        "score": score,
        "end": {"loss": end, "following": [0], "without": without},
    }


def gradual(layers: int) -> dict:
    """A loss that falls by as much from each look to the next."""
    loss = [2.5 - 2.4 * look / (LOOKS - 1) for look in range(LOOKS)]
    return run(layers, 20, 20, 3.0) | {"loss": loss}


ALONE = run(1, LOOKS, LOOKS, 3.0, end=2.5)


@pytest.mark.parametrize(
    ("two", "one", "word"),
    [
        (run(2, 20, 20, 3.0), ALONE, "holds"),
        (gradual(2), ALONE, "does not hold at this scale"),
        (run(2, 20, 30, 3.0), ALONE, "does not hold at this scale"),
        (run(2, 20, 20, 0.2), ALONE, "does not hold at this scale"),
        (run(2, 20, 20, 3.0), run(1, 20, LOOKS, 3.0), "does not hold at this scale"),
        (run(2, 20, 20, 3.0), run(1, 20, LOOKS, 3.0, end=1.5), "unclear"),
    ],
    ids=["a bump", "gradual", "apart", "outlived", "one layer does", "one layer does half"],
)
def test_each_way(two: dict, one: dict, word: str) -> None:
    """A bump of the heads' own holds; a slope, heads that come later or can be missed, and one layer refute."""
    assert judge({"orderless": 2.6, "every": 20, "runs": [two, two, one, one]}).word == word
