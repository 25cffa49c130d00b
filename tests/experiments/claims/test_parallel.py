"""The verdict on training beside an LSTM comes out each way."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.parallel import judge

LENGTHS = [64, 256, 1024, 4096]


@pytest.mark.parametrize(
    ("ratios", "parameters", "word"),
    [
        ([1.0, 1.5, 2.2, 3.3], 1000, "holds"),
        ([1.0, 1.5, 2.2, 3.3], 1100, "unclear"),  # not of equal size
        ([1.0, 1.6, 1.6, 1.0], 1000, "unclear"),  # it neither grows nor falls
        ([3.3, 2.2, 1.5, 1.0], 1000, "does not hold at this scale"),
        ([0.1, 0.2, 0.4, 0.8], 1000, "does not hold at this scale"),  # never faster
        ([0.6, 1.2, 2.4, 0.9], 1000, "unclear"),  # slower again on the longest
    ],
)
def test_verdict(ratios: list[float], parameters: int, word: str) -> None:
    """It has to become faster beside the LSTM, and to be faster on the longest rows."""
    numbers = {
        "tokens": 4096,
        "lengths": LENGTHS,
        "transformer": {"parameters": 1000, "seconds": [1.0] * 4},
        "lstm": {"parameters": parameters, "seconds": ratios},
    }
    assert judge(numbers).word == word
