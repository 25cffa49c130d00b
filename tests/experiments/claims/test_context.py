"""The verdict on long contexts comes out each way."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.context import LENGTHS, ONCE, judge


@pytest.mark.parametrize(
    ("full", "window", "cache", "noise", "word"),
    [
        (2.0, 1.0, 0.0, 1.0, "holds"),
        (1.0, 1.0, 0.0, 1.0, "does not hold at this scale"),
        (2.0, 2.0, 0.0, 1.0, "does not hold at this scale"),
        (2.0, 1.0, 1.0, 1.0, "does not hold at this scale"),
        (2.0, 1.0, 0.0, 4.0, "unclear"),
    ],
)
def test_verdict(full: float, window: float, cache: float, noise: float, word: str) -> None:
    """Another power of the time refutes it, and so does a window's cache that grows."""
    numbers = {}
    for name, power, kept in (("full", full, 1.0), ("window", window, cache)):
        lengths = [*LENGTHS, *ONCE] if name == "window" else [*LENGTHS]
        numbers[name] = {
            "lengths": lengths,
            "seconds": [1e-6 * n**power * (noise if index % 2 else 1.0) for index, n in enumerate(lengths)],
            "cache": [100 * n**kept for n in lengths],
            "held": [1000 * n for n in LENGTHS],
            "foretold": {"lengths": [*ONCE], "seconds": [1.0, 2.0], "cache": [1.0, 2.0]},
        }
    assert judge(numbers).word == word
