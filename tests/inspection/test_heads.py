"""Scores of heads: each is one for the head that does just that, and none for one that does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.families import Family
from anyformer.inspection.heads import head_scores, repeated_scores, repeated_tokens
from anyformer.inspection.interventions import edit

IDS = torch.randint(5, 200, (2, 16), generator=torch.Generator().manual_seed(1))


def looking(back: int) -> Tensor:
    """Weights of a head that looks so many tokens back, and where there are none at the first."""
    where = (torch.arange(16) - back).clamp(min=0)
    return torch.nn.functional.one_hot(where, 16).float()


def test_heads_of_one_habit_score_one_for_it() -> None:
    """Four heads that look to the token before, the first, themselves, and evenly at all they see."""
    model = af.build(families.named("llama")("tiny"), seed=0).eval()
    even = torch.tril(torch.ones(16, 16))
    heads = torch.stack([looking(1), looking(99), looking(0), even / even.sum(-1, keepdim=True)])
    with edit(model, "decoder.layers.1.attention.weights", lambda weights: heads.expand_as(weights)):
        found = head_scores(model, IDS)
    row = {name: score[1] for name, score in found.scores.items()}
    assert found.branches == ["decoder.layers.0.attention", "decoder.layers.1.attention"]
    assert row["previous"][0] == row["first"][1] == row["itself"][2] == 1
    assert row["local"][0] == row["local"][2] == 1 and row["local"][1] < 0.3
    assert torch.allclose(row["entropy"], torch.tensor([0.0, 0.0, 0.0, 1.0]), atol=1e-6)
    assert found.best("first", 1)[0][:2] in [("decoder.layers.1.attention", 1)]


def test_an_induction_head_is_found_on_what_comes_twice() -> None:
    """Looking length - 1 back is induction, length back its duplicate; a beginning is no part of either."""
    model = af.build(families.named("gpt2")("tiny"), seed=0).eval()
    tokens = repeated_tokens(model, 8, 3, first=1)
    assert tokens.shape == (3, 17) and (tokens[:, 0] == 1).all() and torch.equal(tokens[:, 1:9], tokens[:, 9:])
    heads = torch.stack([looking(7), looking(8), looking(1), looking(0)])
    with edit(model, "decoder.layers.0.attention.weights", lambda weights: heads.expand_as(weights)):
        found = repeated_scores(model, length=8)
    assert found.scores["induction"][0].tolist() == [1, 0, 0, 0]
    assert found.scores["duplicate"][0].tolist() == [0, 1, 0, 0]
    assert found.best("induction", 1) == [("decoder.layers.0.attention", 0, 1.0)]


@pytest.mark.parametrize("family", families.registered().values(), ids=lambda family: family.name)
def test_every_family_has_scores_between_none_and_all(family: Family) -> None:
    """Of each layer and head of each stack."""
    model = af.build(family("tiny"), seed=0).eval()
    given = {"source": IDS.flip(1)} if model.spec.shape == "encoder-decoder" else {}
    for found in (head_scores(model, IDS, **given), repeated_scores(model, length=12, rows=2)):
        layers = [block for stack in (model.encoder, model.decoder) if stack is not None for block in stack.layers]
        assert len(found.branches) == len(layers)
        for score in found.scores.values():
            assert score.shape[0] == len(layers) and (score >= 0).all() and (score <= 1 + 1e-5).all()


def test_texts_and_patterns_that_have_no_scores_say_so() -> None:
    """One token, cross-attention, what is no attention, more positions than learned."""
    t5 = af.build(families.named("t5")("tiny"), seed=0).eval()
    with pytest.raises(InputError, match="give at least two"):
        head_scores(t5, IDS[:, :1], source=IDS)
    with pytest.raises(InputError, match="attends from one text to another"):
        head_scores(t5, IDS, "decoder.layers.*.cross_attention", source=IDS[:, :9])
    with pytest.raises(InputError, match="no site of this model matches"):
        head_scores(t5, IDS, "**.feed_forward", source=IDS)
    gpt2 = af.build(families.named("gpt2")("tiny", n_positions=20), seed=0).eval()
    with pytest.raises(InputError, match="has learned 20 positions, and 64 are asked for"):
        repeated_scores(gpt2)
