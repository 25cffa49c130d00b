"""Of lengths never trained: judged by its numbers, in every way; and the same bytes are scored at every length."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.experiments.claims.extrapolation import LENGTHS, SCORED, STRETCHES, TRAINED, _read, judge, rescaled

FAILS = {"none": 1.0, "sinusoidal": 2.0, "rotary": 1.0, "T5 buckets": 0.0}


def numbers(alibi: float, sinusoidal: float, scaled: float, noise: float = 0.0) -> dict:
    """By how much each rises between the trained and the longest length, more and less by turns with the noise."""
    rises = FAILS | {"ALiBi": alibi, "sinusoidal": sinusoidal} | dict.fromkeys(rescaled(TRAINED), scaled)
    losses: dict[str, Any] = {
        name: {
            str(TRAINED): [2.0] * STRETCHES,
            str(LENGTHS[-1]): [2.0 + rise + noise * (-1) ** place for place in range(STRETCHES)],
        }
        for name, rise in rises.items()
    }
    losses["learned"] = {str(TRAINED): [2.0] * STRETCHES}
    return {"losses": losses, "refused": {"learned": "128 positions are learned"}}


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        (numbers(alibi=0.0, sinusoidal=2.0, scaled=0.5), "holds"),
        (numbers(alibi=-0.1, sinusoidal=2.0, scaled=0.5), "holds"),
        (numbers(alibi=0.5, sinusoidal=2.0, scaled=0.5), "does not hold at this scale"),
        (numbers(alibi=0.0, sinusoidal=0.0, scaled=0.5), "does not hold at this scale"),
        (numbers(alibi=0.0, sinusoidal=2.0, scaled=2.0), "does not hold at this scale"),
        (numbers(alibi=0.0, sinusoidal=2.0, scaled=0.5, noise=0.5), "unclear"),
    ],
)
def test_each_verdict(numbers: dict, word: str) -> None:
    """Holds as claimed; not where ALiBi fails, waves do not, or no rescaling helps; unclear within the noise. What is
    refused is said."""
    verdict = judge(numbers)
    assert verdict.word == word
    assert "learned positions refuse: 128 positions are learned" in verdict.because


def counting(tokens: Tensor) -> SimpleNamespace:
    """A model that is sure that the next byte is one more."""
    return SimpleNamespace(logits=20.0 * F.one_hot((tokens + 1) % 256, 256).float())


def test_every_length_scores_the_same_bytes_once() -> None:
    """One wrong byte costs the same, in the same stretch, whatever the length; others cost nothing."""
    ids = torch.arange(LENGTHS[-1] // 2 + SCORED + 1) % 256
    wrong = LENGTHS[-1] // 2 + 3 * SCORED // STRETCHES + 5
    ids[wrong] += 7
    read = {length: _read(counting, ids, length) for length in LENGTHS}  # type: ignore[arg-type]
    assert all(found == read[TRAINED] for found in read.values())
    assert [place for place, loss in enumerate(read[TRAINED]) if loss > 0] == [3]
