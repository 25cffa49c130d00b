"""The lens: its last row is the model's answer, and every row what that layer would say."""

from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.families import Family
from anyformer.inspection.interventions import skip
from anyformer.inspection.lens import check_answers, lens
from anyformer.model import Transformer

IDS = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(1))
FAMILIES = list(families.registered().values())


def built(family: Family) -> tuple[Transformer, dict[str, torch.Tensor]]:
    model = af.build(family("tiny"), seed=0).eval()
    return model, {"source": IDS.flip(1)} if model.spec.shape == "encoder-decoder" else {}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_row_is_the_answer_of_a_model_cut_off_there(family: Family) -> None:
    """The last is the model's own; the others what it says with all later layers skipped."""
    model, given = built(family)
    seen = lens(model, IDS, top=4, **given)
    name = "decoder" if model.decoder is not None else "encoder"
    depth = len(model.output_stack.layers)
    assert len(seen.sites) == depth + 1 and seen.answers.shape == (depth + 1, 2, 9, 4)
    for row in range(depth + 1):
        cut = [f"{name}.layers.{layer}" for layer in range(row, depth)]
        with torch.no_grad():
            if cut:
                with skip(model, *cut):
                    logits = model(IDS, **given).logits
            else:
                logits = model(IDS, **given).logits
        best = logits.float().softmax(-1).topk(4, -1)
        assert torch.equal(seen.answers[row, ..., 0], best.indices[..., 0])
        assert torch.allclose(seen.probabilities[row], best.values, atol=1e-5)
    assert seen.divergence[-1].abs().max() < 1e-5 and seen.divergence.min() > -1e-5
    assert (seen.entropy >= 0).all()


def test_settled_is_the_first_row_of_those_that_agree_to_the_end() -> None:
    """Counted from the embeddings' row."""
    best = torch.tensor([[5, 1], [7, 9], [7, 2], [7, 2]]).T.reshape(2, 4).T.reshape(4, 1, 2, 1)
    nothing = torch.zeros(4, 1, 2)
    found = af.inspection.lens.Lens(["e", "0", "1", "2"], best, nothing, nothing, nothing).settled()
    assert found.tolist() == [[1, 2]]


def test_heads_without_an_answer_at_each_position_say_so() -> None:
    """Embeddings and classifiers of whole sequences."""
    for architecture in ("BertModel", "BertForSequenceClassification"):
        model = af.build(families.named("bert")("tiny", architectures=[architecture]), seed=0).eval()
        with pytest.raises(InputError, match="has no answer at each position"):
            lens(model, IDS)
    check_answers(af.build(families.named("bert")("tiny"), seed=0))
