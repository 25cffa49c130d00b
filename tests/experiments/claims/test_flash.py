"""The verdict on attention in tiles comes out each way."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.flash import KERNELS, judge

LENGTHS = [1024, 2048, 4096, 8192]


@pytest.mark.parametrize(
    ("difference", "tiles", "noise", "word"),
    [
        (1e-6, 1.0, 1.0, "holds"),
        (1e-6, 0.5, 1.0, "holds"),  # less than linear is no longer quadratic either
        (1e-3, 1.0, 1.0, "does not hold at this scale"),
        (1e-6, 2.0, 1.0, "does not hold at this scale"),
        (1e-6, 1.0, 3.0, "unclear"),
    ],
)
def test_verdict(difference: float, tiles: float, noise: float, word: str) -> None:
    """Another result refutes it, and so does memory that is still quadratic."""
    numbers: dict = {"lengths": LENGTHS}
    for name in KERNELS:
        power = 2.0 if name == "reference" else tiles
        held = [100 * length**power * (noise if index % 2 else 1.0) for index, length in enumerate(LENGTHS)]
        numbers[name] = {"difference": difference, "forward": held, "backward": held}
    assert judge(numbers).word == word
