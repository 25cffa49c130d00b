"""The verdict on decoding with a cache comes out each way."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.cache import judge

LENGTHS = [64, 128, 256, 512]


@pytest.mark.parametrize(
    ("without", "cached", "noise", "different", "word"),
    [
        (2.0, 1.0, 1.0, 0, "holds"),
        (2.0, 1.0, 1.0, 1, "does not hold at this scale"),
        (1.0, 1.0, 1.0, 0, "does not hold at this scale"),
        (2.0, 2.0, 1.0, 0, "does not hold at this scale"),
        (2.0, 1.0, 3.0, 0, "unclear"),
    ],
)
def test_verdict(without: float, cached: float, noise: float, different: int, word: str) -> None:
    """One other token refutes it, and so does another power of the length."""
    numbers: dict = {"tokens": 960, "different": different, "distinct": 50, "cache_bytes": 1 << 20}
    for way, power in (("without", without), ("with", cached)):
        taken = [1e-3 * length**power * (noise if index % 2 else 1.0) for index, length in enumerate(LENGTHS)]
        numbers[way] = {"lengths": LENGTHS, "seconds": taken}
    assert judge(numbers).word == word
