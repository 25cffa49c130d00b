"""gpt-oss: its published files and sizes, and what its experts cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import odd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import anyformer as af
from anyformer import families, planning
from anyformer.errors import SpecError
from anyformer.families.family import branch
from anyformer.families.gpt_oss import ClampedExperts
from anyformer.parts.context import Context
from anyformer.parts.masks import Tokens
from anyformer.spec import Attention, Rotary, Transformer

#: The published config.json of the smaller model, but for what every family ignores.
PUBLISHED: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "vocab_size": 201088,
}


def mixer(spec: Transformer) -> ClampedExperts:
    return branch(spec.decoder, "experts", ClampedExperts)[0]


@pytest.mark.parametrize(("size", "total", "active"), [("20b", 20.91, 3.61), ("120b", 116.83, 5.13)])
def test_published_sizes(size: str, total: float, active: float) -> None:
    """Billions of parameters as the model card counts them: a token's without the table that it is looked up in."""
    counted = planning.parameters(families.gpt_oss(size))
    assert round(counted.total / 1e9, 2) == total
    assert round((counted.active - counted.embedding) / 1e9, 2) == active


def test_published_config() -> None:
    """The file as it was published is the preset; so is the newer form, and silence about the rotary scaling."""
    scaling, theta = PUBLISHED["rope_scaling"], PUBLISHED["rope_theta"]
    bare = {name: value for name, value in PUBLISHED.items() if not name.startswith("rope_")}
    newer = {**bare, "rope_parameters": {**scaling, "rope_theta": theta}}
    for attributes in (PUBLISHED, newer, bare, {**bare, "rope_scaling": None}):
        assert families.gpt_oss.parse(attributes)[0] == families.gpt_oss("20b")
    with pytest.raises(SpecError, match="num_experts_per_tok and experts_per_token"):
        families.gpt_oss.parse({**PUBLISHED, "experts_per_token": 5})


def test_positions_without_scaling() -> None:
    """Silence means YaRN, so that no scaling is written as such."""
    plain = families.gpt_oss("tiny", rope_scaling={"rope_type": "default"})
    for spec in (plain, families.gpt_oss("tiny")):
        assert families.gpt_oss.parse(families.gpt_oss.express(spec))[0] == spec
    assert branch(plain.decoder, "attention", Attention)[0].position == Rotary(base=150000.0)


@torch.no_grad()
def test_positions_as_published(tmp_path: Path) -> None:
    """YaRN without rounding, beyond the window and the context before scaling, gives the reference's logits."""
    pytest.importorskip("transformers")
    theirs = odd.reference_model(families.gpt_oss, families.gpt_oss("tiny"), "GptOssForCausalLM", seed=0)
    theirs.save_pretrained(tmp_path)
    ids = torch.randint(512, (1, 200), generator=torch.Generator().manual_seed(0))
    wanted = theirs(input_ids=ids).logits
    assert (af.load(tmp_path, device="cpu")(ids).logits - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_flops_of_its_experts() -> None:
    """With all experts chosen, and widths too odd for grouped products, the matrices' FLOPs are torch's own count."""
    spec = families.gpt_oss("tiny", num_experts_per_tok=4, intermediate_size=77)
    module = mixer(spec).module()(mixer(spec), 64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.randn(1, 40, 64), Context(Tokens(40, start=0)))  # few rows go to kernels that nobody counts
    assert planning.forward_flops(spec, 40)["experts"] == pytest.approx(2 * counter.get_total_flops(), rel=0.01)


def test_a_spec_of_plain_experts_is_no_gpt_oss() -> None:
    """Its experts differ from everybody's, so that neither format takes the other's."""
    with pytest.raises(SpecError, match="ClampedExperts called 'experts'"):
        families.gpt_oss.express(families.mixtral("tiny"))
    with pytest.raises(SpecError, match="MixtureOfExperts called 'experts'"):
        families.mixtral.express(families.gpt_oss("tiny"))
