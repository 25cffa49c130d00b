"""Experts: dense and mixture cost the same, what settles a choice is measured right, each verdict can come out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyformer import planning
from anyformer.experiments.claims.experts import DENSE, DEPTH, DIM, HEADS, LENGTH, MIXTURE, judge, settles
from anyformer.experiments.learning import attention, decoder


def test_both_cost_the_same_flops() -> None:
    """The router's product is paid for with hidden channels of the dense one, to the FLOP."""
    dense, mixture = (
        sum(planning.forward_flops(decoder(DIM, DEPTH, attention(DIM, HEADS), mixer), LENGTH).values())
        for mixer in (DENSE, MIXTURE)
    )
    assert dense == mixture


def test_what_a_feature_settles() -> None:
    """All of a choice that follows from it, half of one that does by half, nothing of one that does not."""
    feature = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    assert settles(feature, feature) == pytest.approx(1)
    assert settles(feature, feature // 2) == pytest.approx(1)
    assert settles(feature // 2, feature) == pytest.approx(0.5)
    assert settles(feature, torch.tensor([0, 1] * 4)) == pytest.approx(0, abs=1e-12)
    assert settles(feature, torch.zeros(8, dtype=torch.long)) == pytest.approx(0)


def _numbers(gain: float, settled: float, swapped: float) -> dict[str, Any]:
    dense = [2.0, 2.1, 1.9]
    mixture = [loss - gain + noise for loss, noise in zip(dense, (0.001, 0.002, 0.0))]
    found = {"true": [settled, settled / 2], "shuffled": [0.001, 0.001]}
    return {
        "dense": {"loss": dense},
        "mixture": {"loss": mixture, "flops_a_token": 1e5},
        "settled": [{"byte": found, "part of the text": found}] * 2 + [{"byte": found, "part of the text": found}],
        "untrained": [[0.3, 0.2]] * 3,
        "swapped": [loss + swapped + noise for loss, noise in zip(mixture, (0.0, 0.001, 0.002))],
    }


@pytest.mark.parametrize(
    ("gain", "settled", "swapped", "word"),
    [
        (0.1, 0.4, 0.5, "holds"),
        (-0.1, 0.4, 0.5, "does not hold at this scale"),
        (0.1, 0.05, 0.5, "does not hold at this scale"),
        (0.1, 0.4, 0.0, "does not hold at this scale"),
        (0.001, 0.4, 0.5, "unclear"),
    ],
)
def test_comes_out_each_way(gain: float, settled: float, swapped: float, word: str) -> None:
    """Better and special; worse; alike in what they get; alike in what they do; no better than the noise."""
    assert judge(_numbers(gain, settled, swapped)).word == word
