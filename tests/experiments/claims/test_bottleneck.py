"""The verdict on the cost of attention comes out each way."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.bottleneck import SCORES, judge

SIZES = [1024, 2048, 4096, 8192]


def costs(power: float, noise: float = 1.0) -> list[float]:
    return [1e-6 * size**power * (noise if index % 2 else 1.0) for index, size in enumerate(SIZES)]


@pytest.mark.parametrize(
    ("full", "width", "noise", "scores", "word"),
    [
        (2.0, 1.0, 1.0, SCORES, "holds"),
        (1.5, 1.0, 1.0, SCORES, "does not hold at this scale"),
        (2.0, 2.0, 1.0, SCORES, "does not hold at this scale"),
        (2.0, 1.0, 1.0, SCORES // 2, "does not hold at this scale"),
        (2.0, 1.0, 3.0, SCORES, "unclear"),
    ],
)
def test_verdict(full: float, width: float, noise: float, scores: int, word: str) -> None:
    """Another power refutes it, and so does another count of scores; a noisy one leaves it open."""
    numbers = {"planned": {"tokens": 100_000, "scores": scores, "bytes": 4 * scores}}
    for name, power in (("full", full), ("window_text", 1.0), ("window_width", width)):
        numbers[name] = {"sizes": SIZES, "seconds": costs(power, noise), "bytes": costs(power)}
    assert judge(numbers).word == word


def test_windows_may_hold_less() -> None:
    """Memory that does not grow with the window at all is within n·w; time is not less than that."""
    numbers = {"planned": {"tokens": 100_000, "scores": SCORES, "bytes": 4 * SCORES}}
    for name, power in (("full", 2.0), ("window_text", 1.0), ("window_width", 1.0)):
        numbers[name] = {"sizes": SIZES, "seconds": costs(power), "bytes": costs(power)}
    numbers["window_width"]["bytes"] = costs(0.0)
    assert judge(numbers).word == "holds"
    numbers["window_width"]["seconds"] = costs(0.0)
    assert judge(numbers).word == "does not hold at this scale"
