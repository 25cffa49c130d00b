"""The average of weights: what it is, where it stands, and that it goes on exactly."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anyformer.model import load
from anyformer.training import read_metrics, train
from anyformer.training.averaging import Average
from anyformer.training.trainer import Trainer


def walk(model: nn.Module, average: Average, steps: range) -> list[torch.Tensor]:
    """Random steps of the weights, each taken in; the weights after each."""
    seen = []
    for step in steps:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        average.update(step)
        seen.append(model.weight.detach().clone())
    return seen


def test_it_is_the_sum_that_it_says() -> None:
    """Σ (1 - d_t) w_t Π_{s>t} d_s, with d_t rising to the decay; nothing to speak of stays of where it began."""
    model = nn.Linear(3, 2, bias=False)
    average = Average(model, 0.9)
    seen = walk(model, average, range(200))
    decays = [min(0.9, (1 + step) / (10 + step)) for step in range(200)]
    wanted, kept = torch.zeros(2, 3, dtype=torch.float64), 1.0
    for decay, weight in zip(reversed(decays), reversed(seen), strict=True):
        wanted, kept = wanted + (1 - decay) * kept * weight, kept * decay
    assert kept < 1e-9
    assert torch.allclose(average.averages["weight"].double(), wanted, atol=1e-5)


def test_within_the_model_has_the_averages_and_after_its_own_again() -> None:
    """To the bit, exception or not; tied weights once, frozen ones never."""
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    average = Average(model, 0.5)
    assert list(average.averages) == ["0.weight"]
    with torch.no_grad():
        model[0].weight.add_(1.0)
    average.update(5)
    own, mean = model[0].weight.detach().clone(), average.averages["0.weight"].clone()
    assert not torch.equal(own, mean)
    with pytest.raises(RuntimeError, match="stop"), average.in_place():
        assert torch.equal(model[1].weight, mean)
        raise RuntimeError("stop")
    assert torch.equal(model[0].weight, own) and torch.equal(average.averages["0.weight"], mean)


def test_taken_up_it_goes_on_to_the_same_bits() -> None:
    """Twelve steps at once are seven, then five by another that took up the first."""
    model, again = nn.Linear(3, 2), nn.Linear(3, 2)
    again.load_state_dict(model.state_dict())
    whole, first = Average(model, 0.99), Average(again, 0.99)
    walk(model, whole, range(12))
    walk(again, first, range(7))
    second = Average(again, 0.99)
    second.load(first.averages)
    walk(again, second, range(7, 12))
    assert all(torch.equal(whole.averages[name], second.averages[name]) for name in ("weight", "bias"))


def test_a_run_gives_the_average_and_resumes_to_the_same_bits(
    recipe: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at a step and resumed: the same metrics and the same average, which is no step's weights. Checkpoints
    hold both."""
    whole = train(recipe("whole", ema=0.9), progress=False).directory
    update = Trainer.update

    def interrupted(self: Trainer, step: int, rate: float) -> Any:
        if step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return update(self, step, rate)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        stopped = train(recipe("stopped", ema=0.9), progress=False).directory
    train(resume=stopped, progress=False)
    rows = [[{**row, "elapsed": 0} for row in read_metrics(run / "metrics.jsonl")] for run in (whole, stopped)]
    assert rows[0] == rows[1]
    given, again = (load_file(run / "model.safetensors") for run in (whole, stopped))
    assert all(torch.equal(given[name], again[name]) for name in given)
    last = whole / "checkpoints" / "step-00000008"
    average, weights = load_file(last / "average.safetensors"), dict(load(last).named_parameters())
    final = dict(load(whole).named_parameters())
    assert all(torch.equal(final[name], average[name]) for name in average)
    assert not any(torch.equal(final[name], weights[name]) for name in average)


def test_what_is_validated_is_the_average(
    recipe: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights during a validation are those that the run then ends with; during a step they are not."""
    seen: dict[str, torch.Tensor] = {}
    precision = Trainer._precision

    def note(self: Trainer) -> Any:
        name = "step" if self.model.training else "validation"
        seen[name] = next(self.model.parameters()).detach().clone()
        return precision(self)

    monkeypatch.setattr(Trainer, "_precision", note)
    final = load(train(recipe(ema=0.9), progress=False).directory)
    assert torch.equal(seen["validation"], next(final.parameters()))
    assert not torch.equal(seen["step"], seen["validation"])
