"""Compiled regions compute what the model computes, and a run with them is exact."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from objectives import tiny

from anyformer.parts.feedforward import FeedForward
from anyformer.training import read_metrics, train
from anyformer.training.compiling import compile_regions


@pytest.mark.parametrize(
    ("asked", "device", "wanted"),
    [(None, "cpu", False), (None, "cuda", True), (True, "cpu", True), (False, "cuda", False)],
)
def test_it_is_compiled_where_it_pays_or_is_asked_for(
    asked: bool | None, device: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default on accelerators alone; a recipe can say otherwise."""
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(FeedForward, "compile", lambda self, **how: compiled.append(self))
    model = tiny("llama:tiny", "causal")
    compile_regions(model, asked, torch.device(device))
    assert len(compiled) == (len(model.decoder.layers) if wanted else 0)


# The compiler looks whether what goes into a region has a gradient, and torch warns of every such look.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_a_compiled_run_learns_the_same_and_resumes_to_the_bit(recipe: Any) -> None:
    """Its losses are those of a run that is not compiled, nearly; stopped behind its first checkpoint, it goes on to
    the very rows that it would have had."""
    plain = train(recipe("plain", steps=6, checkpoint_every=3), progress=False)
    whole = train(recipe("compiled", steps=6, checkpoint_every=3, compile=True), progress=False)
    losses = [[row["loss"] for row in read_metrics(run.directory / "metrics.jsonl")] for run in (plain, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    weights = (whole.directory / "model.safetensors").read_bytes()
    shutil.rmtree(whole.directory / "checkpoints" / "step-00000006")
    (whole.directory / "model.safetensors").unlink()
    torch.compiler.reset()
    again = train(resume=whole.directory, progress=False)
    assert [row["loss"] for row in read_metrics(again.directory / "metrics.jsonl")] == losses[1]
    assert (again.directory / "model.safetensors").read_bytes() == weights
