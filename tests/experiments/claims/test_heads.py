"""Heads: the verdict on roles and costs comes out each way, and both are measured on a model that fits in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer import model as models
from anyformer.errors import ExperimentError
from anyformer.experiments.claims import heads
from anyformer.experiments.experiment import Lab
from anyformer.experiments.learning import attention, decoder
from anyformer.inspection import trace
from anyformer.inspection.heads import repeated_tokens
from anyformer.inspection.interventions import edit
from anyformer.spec import Rotary


def _numbers(
    again: str = "pif.......",
    fresh: str = "..........",
    missed: float = 0.5,
    spread: float = 0.1,
    costliest: float = 1.0,
) -> dict[str, Any]:
    """Ten layers of ten heads, in each one that copies; without it, so much more is lost on repeats than on text, give
    or take. Of a hundred heads, ten cost `costliest`, the others 0.01."""
    costs = []
    for layer in range(10):
        for head in range(10):
            text = costliest if head == 0 else 0.01
            more = missed + spread * (-1) ** layer if head == 1 else 0.0
            costs.append(
                {
                    "layer": layer,
                    "head": head,
                    "copying": head == 1,
                    "drawn": True,
                    "text": text,
                    "repeats": text + more,
                }
            )
    return {"roles": [["pif......."] * 10, [again] * 10], "fresh": [[fresh] * 10] * 2, "costs": costs}


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        (_numbers(), "holds"),
        (_numbers(again="pff......."), "unclear"),
        (_numbers(again="f.i......."), "does not hold at this scale"),
        (_numbers(fresh=".........f"), "does not hold at this scale"),
        (_numbers(missed=0.0), "unclear"),
        (_numbers(missed=-0.5), "does not hold at this scale"),
        (_numbers(costliest=0.06), "unclear"),
        (_numbers(costliest=0.01), "does not hold at this scale"),
    ],
)
def test_comes_out_each_way(numbers: dict[str, Any], word: str) -> None:
    """As claimed; some or most roles lost in other texts; roles without training; those that copy missed as much as
    others, or less; costs that are less, or not at all, in few heads."""
    assert heads.judge(numbers).word == word


def test_a_role_that_no_head_has_refutes() -> None:
    """All three that all write of have to be there."""
    numbers = _numbers() | {"roles": [["p.f......."] * 10] * 2}
    assert heads.judge(numbers).word == "does not hold at this scale"


def test_where_all_heads_copy_nothing_is_compared() -> None:
    """Without others beside them, it says so."""
    numbers = _numbers()
    for cost in numbers["costs"]:
        cost["copying"] = True
    assert heads.judge(numbers).because.startswith("too few")


def test_a_head_has_the_role_that_holds_most_of_its_attention() -> None:
    """One that copies may rest on the first token; half is not most."""
    scores = {name: torch.zeros(1, 3) for name in heads.ROLES}
    scores["first"][0] = torch.tensor([0.9, 0.9, 0.5])
    scores["induction"][0, 1] = 0.6
    assert heads._roles(scores) == ["fi."]


def test_a_head_costs_what_the_loss_rises_by(tmp_path: Path) -> None:
    """With its mean over both kinds of tokens in its place, as by hand; nothing, where nobody reads it."""
    model = models.build(decoder(16, 2, attention(16, 2, position=Rotary()), std=1.0), seed=0).eval()
    with torch.no_grad():
        model.get_parameter("decoder.layers.0.attention.output.weight")[:, :8] = 0
    texts = torch.randint(256, (heads.ROWS, heads.LENGTH), generator=torch.Generator().manual_seed(0))
    lab = Lab(tmp_path)
    found = heads._costs(model, texts, [(0, 0), (1, 1)], lab)
    assert found[0, 0] == {"text": 0, "repeats": 0}

    repeats = repeated_tokens(model, heads.LENGTH // 2, heads.ROWS, seed=lab.seed + heads.ROWS)
    site = "decoder.layers.1.attention.heads"
    with torch.no_grad(), trace(model, site) as t:
        model(torch.cat([texts[:, :-1], repeats[:, :-1]]))

    def without(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([value[:, 0], t[site][:, 1].mean((0, 1)).expand_as(value[:, 1])], 1)

    usual = heads._loss(model, texts, texts)
    with edit(model, site, without):
        assert found[1, 1]["text"] == pytest.approx(heads._loss(model, texts, texts) - usual, abs=2e-5)
    assert abs(found[1, 1]["text"]) > 1e-2


def test_bytes_that_are_too_few_tokens_are_refused(tmp_path: Path) -> None:
    """What is one token over and over is no text to tell roles by."""

    class Whole:
        def encode(self, text: str, special: bool) -> list[int]:
            return [0]

    model = models.build(decoder(16, 1, attention(16, 2)), seed=0)
    model.tokenizer = Whole()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ExperimentError, match="are fewer than 64 tokens; give a text in words"):
        heads._texts(model, Lab(tmp_path), 2)
