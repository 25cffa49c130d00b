"""Chinchilla: runs of a known law give its exponent, and the verdict is read off the intervals."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.experiments.claims.chinchilla import BUDGETS, _fitted, judge


def test_runs_of_a_known_law_give_its_exponent() -> None:
    """Of loss 1 + 30/N^0.4 + 60/D^0.4 both fits find that N grows with the root of C."""
    points = []
    for budget, widths in BUDGETS.items():
        for width in widths:
            size = 256 * width + 24 * width**2
            tokens = budget / 6 / size
            points.append({"parameters": size, "tokens": tokens, "loss": 1 + 30 / size**0.4 + 60 / tokens**0.4})
    fitted = _fitted(points)
    assert fitted["exponents"]["law"]["value"] == pytest.approx(0.5, abs=0.01)
    assert fitted["exponents"]["isoflop"]["value"] == pytest.approx(0.5, abs=0.05)
    best = (30 / 60) ** (1 / 0.8) * (1.6e11 / 6) ** 0.5
    assert fitted["tokens_each"]["value"] == pytest.approx(1.6e11 / 6 / best**2, rel=0.05)


def _numbers(isoflop: tuple[float, float], law: tuple[float, float]) -> dict[str, Any]:
    intervals = {"isoflop": isoflop, "law": law}
    exponents = {name: {"value": sum(ends) / 2, "interval": list(ends)} for name, ends in intervals.items()}
    return {"exponents": exponents, "tokens_each": {"flops": 1e11, "value": 20.0, "interval": [15.0, 25.0]}}


@pytest.mark.parametrize(
    ("isoflop", "law", "word"),
    [
        ((0.45, 0.55), (0.4, 0.6), "holds"),
        ((0.6, 0.7), (0.55, 0.65), "does not hold at this scale"),
        ((0.3, 0.4), (0.1, 0.2), "does not hold at this scale"),
        ((0.45, 0.55), (0.6, 0.7), "unclear"),
        ((0.1, 0.9), (0.1, 0.9), "unclear"),
    ],
)
def test_comes_out_each_way(isoflop: tuple[float, float], law: tuple[float, float], word: str) -> None:
    """Both hold 0.5; both miss it; one does; both hold anything."""
    assert judge(_numbers(isoflop, law)).word == word


def test_without_a_fit_nothing_is_said() -> None:
    """Losses that no law fits leave it open."""
    assert judge({"exponents": {}, "tokens_each": None}).word == "unclear"
