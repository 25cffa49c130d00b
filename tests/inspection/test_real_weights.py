"""Looking inside SmolLM2-135M: what is known of such models is seen in it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer.inspection.attribution import attribution
from anyformer.inspection.heads import head_scores, repeated_scores, repeated_tokens
from anyformer.inspection.interventions import ablate, edit
from anyformer.inspection.lens import lens
from anyformer.inspection.patching import logit_difference, patching
from anyformer.model import Transformer


@pytest.fixture(scope="module")
def smollm(smollm2: Path) -> Transformer:
    return af.load(smollm2)


def ids(model: Transformer, text: str) -> torch.Tensor:
    assert model.tokenizer is not None
    return torch.tensor([model.tokenizer.encode(text)])


def test_a_capital_is_recalled_in_the_last_layers(smollm: Transformer) -> None:
    """The lens settles late, and whose the logit is sums to it."""
    assert smollm.tokenizer is not None
    text, (paris,) = "The capital of Italy is Rome. The capital of France is", smollm.tokenizer.encode(" Paris")
    found = lens(smollm, ids(smollm, text))
    assert found.answers[-1, 0, -1, 0] == paris and found.settled()[0, -1] > 20
    shares = attribution(smollm, ids(smollm, text), paris)
    with torch.no_grad():
        logit = smollm(ids(smollm, text)).logits[0, -1, paris]
    assert torch.allclose(torch.stack(list(shares.parts.values())).sum(), logit.double(), rtol=1e-4)


def test_the_country_moves_the_answer_from_where_it_is_named(smollm: Transformer) -> None:
    """Early the token that differs restores the answer; before the last layer, the place of the answer does."""
    assert smollm.tokenizer is not None
    clean, corrupt = (ids(smollm, f"The capital of {country} is the city of") for country in ("France", "Italy"))
    paris, rome = (smollm.tokenizer.encode(name)[0] for name in (" Paris", " Rome"))
    metric, named = logit_difference(paris, rome), int((clean != corrupt)[0].nonzero())
    early = patching(smollm, clean, corrupt, metric, "decoder.layers.1.residual_before")
    late = patching(smollm, clean, corrupt, metric, "decoder.layers.29.residual_before")
    assert early.clean > 0 > early.corrupt
    assert early.restored[0, named] > 0.9 and early.restored[0, -1].abs() < 0.1
    assert late.restored[0, -1] > 0.5 and late.restored[0, named].abs() < 0.3


@pytest.mark.parametrize("length", [40, 6], ids=["many", "few"])
def test_a_stream_changed_in_the_middle_of_a_layer_leads_where_the_formula_does(
    smollm: Transformer, length: int
) -> None:
    """Of the last layer by hand, h + f(n(h)), the last norm, the head: the same logits."""
    tokens = ids(smollm, "The capital of Italy is Rome, and that of France is Paris. " * 4)[:, :length]
    stack, block = smollm.output_stack, smollm.get_submodule("decoder.layers.29")
    middle = "decoder.layers.29.attention.residual_after"
    with torch.no_grad():
        with af.trace(smollm, middle) as t:
            before = smollm(tokens).logits
        changed = 0.5 * t[middle] + t[middle].roll(1, dims=1)
        with edit(smollm, middle, lambda stream: 0.5 * stream + stream.roll(1, dims=1)):
            found = smollm(tokens).logits
        out = changed + block.feed_forward(block.feed_forward_norm(changed), None)  # type: ignore[operator]
        expected = smollm.head(stack.norm(out), tokens)  # type: ignore[misc]
        assert torch.equal(smollm(tokens).logits, before)
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, before, atol=1)


def test_it_has_heads_of_induction_of_the_token_before_and_of_rest(smollm: Transformer) -> None:
    """And without its induction heads, what comes twice is predicted worse than without as many others."""
    repeats = repeated_scores(smollm, length=24, rows=2)
    habits = head_scores(smollm, ids(smollm, "The quick brown fox jumps over the lazy dog, and then it sleeps."))
    assert repeats.scores["induction"].max() > 0.5
    assert habits.scores["previous"].max() > 0.5 and habits.scores["first"].max() > 0.9
    tokens = repeated_tokens(smollm, 24, 2)
    targets = torch.cat((torch.full((2, 24), -100), tokens[:, 25:], torch.full((2, 1), -100)), 1)

    def loss(heads: list[tuple[str, int, float]]) -> float:
        with ExitStack() as stack, torch.no_grad():
            for branch, head, _ in heads:
                stack.enter_context(ablate(smollm, branch, heads=[head]))
            return float(smollm(tokens, targets=targets).loss)

    least = [(branch, 8 - head, 0.0) for branch, head, _ in repeats.best("induction", 6)]
    assert loss(repeats.best("induction", 6)) > loss([]) + 0.2 and loss(repeats.best("induction", 6)) > loss(least)
