"""Activation patching: the table says where the difference between two prompts passes."""

from __future__ import annotations

import pytest
import torch

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.inspection.patching import logit_difference, patching

CLEAN = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(1))
CORRUPT = CLEAN.clone()
CORRUPT[0, 4] += 1


@pytest.mark.parametrize("name", ["llama", "gpt2", "deepseek_v3", "qwen3_moe"])
def test_the_difference_comes_in_where_the_prompts_differ_and_leaves_at_the_end(name: str) -> None:
    """Before the first layer it is all at the token that differs, nowhere before it, and nothing else matters; each
    effect is what patching that one position by itself gives."""
    model = af.build(families.named(name)("tiny"), seed=0).eval()
    metric = logit_difference(7, 8)
    found = patching(model, CLEAN, CORRUPT, metric, "decoder.layers.*.residual_before", batch_size=4)
    depth = len(model.decoder.layers)
    assert found.patched.shape == (depth, 9) and found.sites[0] == "decoder.layers.0.residual_before"
    wanted = torch.zeros(9)
    wanted[4] = 1
    assert torch.allclose(found.restored[0], wanted, atol=1e-3)
    assert found.restored[:, :4].abs().max() < 1e-3
    with torch.no_grad(), af.trace(model, "decoder.layers.1.residual_before") as t:
        model(CLEAN)
        with af.inspection.interventions.patch(model, t, "decoder.layers.1.residual_before", positions=[6]):
            alone = metric(model(CORRUPT).logits)
    assert torch.allclose(found.patched[1, 6], alone, atol=1e-5)


def test_heads_have_a_table_of_their_own() -> None:
    """A column a head."""
    model = af.build(families.named("gpt2")("tiny"), seed=0).eval()
    found = patching(model, CLEAN, CORRUPT, logit_difference(7, 8), "decoder.layers.*.attention.heads")
    assert found.patched.shape == (2, 4) and found.restored.isfinite().all()


def test_an_encoder_decoder_is_patched_in_both_stacks() -> None:
    """The source differs: its difference comes in through the encoder, and a decoder of one token is all at it."""
    model = af.build(families.named("t5")("tiny"), seed=0).eval()
    begin = torch.tensor([[1]])
    pair = ({"tokens": begin, "source": CLEAN}, {"tokens": begin, "source": CORRUPT})
    found = patching(model, *pair, logit_difference(7, 8))
    rows = dict(zip(found.sites, found.restored))
    assert torch.allclose(rows["encoder.layers.0.residual_before"][4], torch.ones(()), atol=1e-3)
    assert rows["decoder.layers.0.residual_before"][0].abs() < 1e-3
    assert rows["decoder.layers.0.residual_before"][1:].isnan().all()


def test_pairs_that_cannot_be_patched_say_so() -> None:
    """Two lengths, several rows, prompts that the metric cannot tell apart, heads and positions at once, no logits."""
    model = af.build(families.named("llama")("tiny"), seed=0).eval()
    metric = logit_difference(7, 8)
    for clean, corrupt, said in (
        (CLEAN, CORRUPT[:, :5], "two prompts of one shape"),
        (CLEAN.repeat(2, 1), CORRUPT.repeat(2, 1), "one prompt of either kind"),
        (CLEAN, CLEAN, "choose prompts or a metric that differ"),
    ):
        with pytest.raises(InputError, match=said):
            patching(model, clean, corrupt, metric)
    with pytest.raises(InputError, match="of one kind at a time"):
        patching(model, CLEAN, CORRUPT, metric, "decoder.layers.0.attention.*")
    bare = af.build(families.named("bert")("tiny", architectures=["BertModel"]), seed=0).eval()
    with pytest.raises(InputError, match="gives no logits"):
        patching(bare, CLEAN, CORRUPT, metric)
