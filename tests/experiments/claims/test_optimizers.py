"""Of AdamW and Muon: judged by its numbers, in every way; and a learning rate is searched until it lies between two."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from anyformer.experiments import Lab
from anyformer.experiments.claims import optimizers
from anyformer.experiments.claims.optimizers import judge


def numbers(muon: float, noise: float, seconds: float) -> dict:
    """Three seeds of AdamW at 2 in a second, of Muon above by so much, more and less with the noise, in `seconds`."""
    adamw = {"rate": 0.01, "steps": 100, "losses": [2.0, 2.0, 2.0], "seconds": 1.0}
    losses = [2 + muon, 2 + muon + noise, 2 + muon - noise]
    other = {"rate": 0.01, "steps": 90, "losses": losses, "seconds": seconds}
    runs = {"adamw": adamw, "muon": other, "muon, equal steps": other}
    return {"seconds_a_step": {"adamw": 1.0, "muon": 1.1}, "runs": runs}


@pytest.mark.parametrize(
    ("muon", "noise", "seconds", "word"),
    [
        (-0.1, 0.001, 1.0, "holds"),
        (-0.1, 0.001, 1.2, "unclear"),
        (0.1, 0.001, 1.2, "does not hold at this scale"),
        (-0.1, 0.5, 1.0, "unclear"),
    ],
)
def test_each_verdict(muon: float, noise: float, seconds: float, word: str) -> None:
    """Lower or higher by more than the noise, or neither; what took longer has not won in equal time."""
    verdict = judge(numbers(muon, noise, seconds))
    assert verdict.word == word and "1.10 times as long" in verdict.because


@pytest.mark.parametrize("best", [1e-3, 8e-3, 6e-2])
def test_the_search_goes_on_until_the_best_lies_between_two(
    best: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Wherever the best is, it is neither the least nor the largest that was tried."""

    def train(text: object, name: str, steps: int, rate: float, seed: int) -> optimizers.Run:
        return optimizers.Run(abs(math.log(rate / best)), [], 1.0)

    monkeypatch.setattr(optimizers, "_train", train)
    found = optimizers._search(Lab(tmp_path), (torch.empty(0), torch.empty(0)), "muon", 10)
    rates = list(found)
    assert rates == sorted(rates) and rates[0] < min(found, key=found.__getitem__) < rates[-1]
    assert abs(math.log2(min(found, key=found.__getitem__) / best)) <= 0.5
