"""Whose a logit is: the shares of heads, layers and embeddings sum to it."""

from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.families import Family
from anyformer.inspection.attribution import attribution, frozen
from anyformer.parts.norms import Norm
from anyformer.spec import Norm as NormSpec

IDS = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
LANGUAGE = [f for f in families.registered().values() if f("tiny").head.kind == "language_model"]


@pytest.mark.parametrize("family", LANGUAGE, ids=lambda family: family.name)
def test_shares_sum_to_the_logit(family: Family) -> None:
    """Of every language model: whatever its norms, wherever they stand, with all of its parts drawn at random; and of
    each attention, the heads' shares with its bias' make its own."""
    model = af.build(family("tiny"), seed=0).eval()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    given = {"source": IDS.flip(1)} if model.spec.shape == "encoder-decoder" else {}
    with torch.no_grad():
        logits = model(IDS, **given).logits
    cap = getattr(model.head, "soft_cap", None)
    for position in (-1, 3):
        wanted = logits[:, position, 7].double()
        wanted = wanted if cap is None else cap * torch.atanh(wanted / cap)
        found = attribution(model, IDS, 7, position=position, **given)
        total = torch.stack(list(found.parts.values())).sum(0)
        assert torch.allclose(found.logit, wanted, rtol=1e-4, atol=1e-4)
        assert torch.allclose(total, found.logit, rtol=1e-4, atol=1e-5)
        pair = attribution(model, IDS, 7, torch.tensor([8, 9]), position=position, **given)
        others = logits[[0, 1], position, [8, 9]].double()
        others = others if cap is None else cap * torch.atanh(others / cap)
        assert torch.allclose(pair.logit, wanted - others, rtol=1e-4, atol=1e-4)
    for branch, heads in found.heads.items():
        bias = model.get_submodule(branch).get_submodule("output").bias
        if bias is None and family.name != "gemma2":
            assert torch.allclose(heads.sum(1), found.parts[branch], rtol=1e-4, atol=1e-5)
    assert len(found.heads) == sum("attention" in branch for branch in found.parts)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_frozen_norm_is_the_norm(kind: str) -> None:
    """For the very value that froze it; and linear for others."""
    norm = Norm(NormSpec(kind=kind, bias=kind == "layer"), 8).double()  # type: ignore[arg-type]
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    read, toward = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(2)).double()
    before, added = frozen(norm, read, toward)
    assert torch.allclose((norm(read) * toward).sum(-1), (read * before).sum(-1) + added)


def test_what_has_no_linear_head_says_so() -> None:
    """BERT's head is not linear in the stream; and there is no such token, no such position."""
    bert = af.build(families.named("bert")("tiny"), seed=0).eval()
    with pytest.raises(InputError, match="ends in a masked_language_model head"):
        attribution(bert, IDS, 7)
    model = af.build(families.named("llama")("tiny"), seed=0).eval()
    with pytest.raises(InputError, match="there is no position 9 among 9 tokens"):
        attribution(model, IDS, 7, position=9)
    with pytest.raises(InputError, match="is outside the vocabulary"):
        attribution(model, IDS, 100_000)
