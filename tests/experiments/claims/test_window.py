"""The verdict on the reach of windows comes out each way."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.experiments import Lab
from anyformer.experiments.claims import window


@pytest.mark.parametrize(
    ("changed", "gradients", "word"),
    [
        ([12, 12], [12, 12], "holds"),
        ([12, 13], [12, 12], "does not hold at this scale"),
        ([12, 12], [12, 20], "does not hold at this scale"),
        ([11, 12], [12, 12], "unclear"),
    ],
)
def test_verdict(changed: list[int], gradients: list[int], word: str) -> None:
    """Further refutes it; less far leaves open whether information travels as far as is said."""
    case = {"window": 5, "depth": 3, "expected": 12, "changed": changed, "gradients": gradients}
    exact = {"window": 2, "depth": 1, "expected": 1, "changed": [1, 1], "gradients": [1, 1]}
    assert window.judge({"cases": [exact, case]}).word == word


def test_reach_of_a_model(tmp_path: Path) -> None:
    """Two layers of five keys reach eight tokens, whichever kernel serves."""
    case = window._case(Lab(tmp_path, scale=0.1), 5, 2)
    assert case["changed"] == case["gradients"] == [8, 8]
