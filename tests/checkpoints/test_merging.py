"""Adapters of any writer on the models that they were made for: what is computed, where they are found, what is
refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import anyformer as af
from anyformer import checkpoints, families
from anyformer.checkpoints.merging import merged
from anyformer.errors import CheckpointError
from anyformer.model import Transformer

QUERY = "model.layers.1.self_attn.q_proj"


def adapter(directory: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """An adapter as peft writes it: names below `base_model.model.`, and a config with the defaults of its own."""
    directory.mkdir(exist_ok=True)
    defaults = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"], "use_dora": False}
    (directory / "adapter_config.json").write_text(json.dumps({**defaults, **config}))
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
        directory / "adapter_model.safetensors",
    )
    return directory


def low_rank(module: str, out: int, into: int, rank: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(out)
    down, up = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
    return {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}


def saved(family: str, directory: Path, **attributes: Any) -> Transformer:
    model = af.build(families.named(family)("tiny", **attributes), seed=0).eval()
    model.family = family
    model.save(directory)
    return model


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    saved("llama", tmp_path / "base")
    return tmp_path / "base"


def weight(model: Transformer, name: str) -> Tensor:
    return model.get_parameter(name).detach()


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"q_proj": 3}}, 1.5),
        ({"alpha_pattern": {"^q_proj": 3}}, 4.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 3, QUERY: 5}}, 2.5),
        ({"rank_pattern": {"q_proj": 2}, "r": 64}, 4.0),
    ],
)
def test_a_change_is_added_by_its_scale(llama: Path, tmp_path: Path, config: dict[str, Any], scale: float) -> None:
    """W + scale · B A, with α / r, α / √r or a module's own α; every other tensor is as it was."""
    parts = low_rank(QUERY, 128, 128)
    before, after = af.load(llama), af.load(llama, adapter=adapter(tmp_path / "a", parts, **config))
    down, up = parts.values()
    name = "decoder.layers.1.attention.query.weight"
    torch.testing.assert_close(weight(after, name) - weight(before, name), scale * up @ down, rtol=1e-4, atol=1e-5)
    for other, parameter in before.named_parameters():
        assert other == name or torch.equal(parameter, weight(after, other))


def test_a_change_is_added_before_numbers_are_rounded(llama: Path, tmp_path: Path) -> None:
    """A model kept in bfloat16 and asked for in float32 has all of a change that bfloat16 would lose."""
    model = af.load(llama).bfloat16()
    model.save(tmp_path / "half")
    parts = {name: 1e-3 * tensor for name, tensor in low_rank(QUERY, 128, 128).items()}
    found = af.load(tmp_path / "half", "float32", adapter=adapter(tmp_path / "a", parts))
    name = "decoder.layers.1.attention.query.weight"
    down, up = parts.values()
    torch.testing.assert_close(weight(found, name), weight(model, name).float() + 4 * up @ down)
    assert af.load(tmp_path / "half", adapter=tmp_path / "a").dtype == torch.bfloat16


def test_what_the_file_fuses_and_turns(tmp_path: Path) -> None:
    """A change of GPT-2's fused c_attn, kept as [in, out], reaches query, key and value."""
    saved("gpt2", tmp_path / "base")
    parts = low_rank("transformer.h.0.attn.c_attn", 3 * 64, 64)
    before = af.load(tmp_path / "base")
    after = af.load(tmp_path / "base", adapter=adapter(tmp_path / "a", parts, fan_in_fan_out=True))
    down, up = parts.values()
    for name, rows in zip(("query", "key", "value"), (4 * up @ down).split(64)):
        name = f"decoder.layers.0.attention.{name}.weight"
        torch.testing.assert_close(weight(after, name) - weight(before, name), rows, rtol=1e-4, atol=1e-5)


def test_single_experts(tmp_path: Path) -> None:
    """An adapter from when transformers kept experts apart changes the one that it names."""
    saved("mixtral", tmp_path / "base")
    before = af.load(tmp_path / "base")
    experts = weight(before, "decoder.layers.0.experts.gate")
    _, out, into = experts.shape
    parts = low_rank("model.layers.0.block_sparse_moe.experts.1.w1", out, into)
    after = af.load(tmp_path / "base", adapter=adapter(tmp_path / "a", parts))
    changed = weight(after, "decoder.layers.0.experts.gate") - experts
    down, up = parts.values()
    torch.testing.assert_close(changed[1], 4 * up @ down, rtol=1e-4, atol=1e-5)
    assert not changed[[0, *range(2, len(changed))]].any()


def test_what_was_trained_whole_takes_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    """A classifier's head that was saved with the adapter, and a bias."""
    saved("bert", tmp_path / "base", architectures=["BertForSequenceClassification"])
    head, bias = torch.randn(2, 128), torch.randn(128)
    tensors = {"classifier.weight": head, "bert.encoder.layer.0.attention.self.query.bias": bias}
    model = af.load(tmp_path / "base", adapter=adapter(tmp_path / "a", tensors, modules_to_save=["classifier"]))
    assert torch.equal(weight(model, "head.output.weight"), head)
    assert torch.equal(weight(model, "encoder.layers.0.attention.query.bias"), bias)


def test_names_without_the_prefix(tmp_path: Path) -> None:
    """An adapter of BertModel fits the same model with a head, whose names begin with `bert.`."""
    saved("bert", tmp_path / "base")
    parts = low_rank("encoder.layer.0.attention.self.query", 128, 128)
    model = af.load(tmp_path / "base", adapter=adapter(tmp_path / "a", parts))
    name = "encoder.layers.0.attention.query.weight"
    assert not torch.equal(weight(model, name), weight(af.load(tmp_path / "base"), name))


def test_an_adapter_is_a_model_where_its_own_is_known(llama: Path, tmp_path: Path) -> None:
    """A directory with adapter_config.json and no model loads the one that it names, with the change; its own
    tokenizer, if it has one, counts."""
    parts = low_rank(QUERY, 128, 128)
    directory = adapter(tmp_path / "a", parts, base_model_name_or_path=str(llama))
    model, same = af.load(directory), af.load(llama, adapter=directory)
    assert all(torch.equal(parameter, weight(same, name)) for name, parameter in model.named_parameters())
    assert model.origin == str(directory) and model.tokenizer is None
    af.text.byte_level().save(directory)
    assert af.load(directory).tokenizer is not None


def test_a_gguf_file_takes_the_adapter_of_its_family(llama: Path, tmp_path: Path) -> None:
    """An adapter names the modules of the reference, and fits the same model out of a GGUF file."""
    found = checkpoints.open(llama)
    checkpoints.write_gguf(
        tmp_path / "m.gguf", spec=found.spec, tensors=found.tensors, family="llama", dtype=torch.float32
    )
    directory = adapter(tmp_path / "a", low_rank(QUERY, 128, 128))
    one, other = af.load(tmp_path / "m.gguf", adapter=directory), af.load(llama, adapter=directory)
    assert all(torch.equal(parameter, weight(other, name)) for name, parameter in one.named_parameters())


def test_a_saved_merge_is_a_model_like_any_other(llama: Path, tmp_path: Path) -> None:
    """What was merged, saved and loaded again has the merged weights."""
    model = af.load(llama, adapter=adapter(tmp_path / "a", low_rank(QUERY, 128, 128)))
    model.save(tmp_path / "merged")
    again = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(again[f"{QUERY}.weight"], weight(model, "decoder.layers.1.attention.query.weight"))


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (low_rank("model.layers.9.self_attn.q_proj", 128, 128), {}, r"layers\.9.* one of another model"),
        (low_rank(QUERY, 96, 128), {}, r"shape were \[96, 128\], and the model's is \[128, 128\]"),
        (low_rank("lm_head", 512, 128), {}, "no tensor of its own"),
        ({f"{QUERY}.lora_A.weight": torch.ones(2, 128)}, {}, "no half of a matrix's change"),
        ({f"{QUERY}.lora_embedding_A": torch.ones(2, 128)}, {}, "lora_embedding_A, which is no half"),
        (low_rank(QUERY, 128, 128), {"peft_type": "IA3"}, "type IA3 is not known here"),
        (low_rank(QUERY, 128, 128), {"use_dora": True}, "use_dora=True is not known here"),
        (low_rank(QUERY, 128, 128), {"of_tomorrow": 3}, "of_tomorrow=3 is not known here"),
        (low_rank(QUERY, 128, 128), {"init_lora_weights": "pissa"}, "changes the base model"),
        (low_rank(QUERY, 128, 128), {"lora_alpha": "8"}, "must be numbers"),
        (low_rank(QUERY, 128, 128), {"alpha_pattern": {"(a+)+": 3}}, "is a regular expression"),
    ],
)
def test_what_does_not_fit_is_named(
    llama: Path, tmp_path: Path, tensors: dict[str, Tensor], config: dict[str, Any], said: str
) -> None:
    """Another model's adapter, half of one, or one that is more than B A: a sentence, before any weight is read."""
    with pytest.raises(CheckpointError, match=said):
        merged(checkpoints.open(llama), adapter(tmp_path / "a", tensors, **config))


def test_what_is_merged_into_a_quantised_file_keeps_its_floats(llama: Path, tmp_path: Path) -> None:
    """A change may be smaller than the steps of 8 bits; all other matrices stay as the file has them."""
    af.load(llama, device="cpu", quantize="int8").save(tmp_path / "x.gguf")
    its = adapter(tmp_path / "a", low_rank(QUERY, 128, 128))
    model = af.load(tmp_path / "x.gguf", device="cpu", quantize="keep", adapter=its)
    assert model.quantization is not None
    assert [*model.quantization.whole] == ["decoder.layers.1.attention.query"]
    assert set(model.quantization.formats.values()) == {"Q8_0"}


def test_adapters_that_lead_nowhere(llama: Path, tmp_path: Path) -> None:
    """A directory that is none, a model that is not there, and an adapter of an adapter."""
    with pytest.raises(CheckpointError, match=r"is no adapter: it has no adapter_config\.json"):
        af.load(llama, adapter=llama)
    lost = adapter(tmp_path / "lost", {}, base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(CheckpointError, match=r"cannot be opened: .*gone.*; name that model yourself"):
        af.load(lost)
    twice = adapter(tmp_path / "twice", {}, base_model_name_or_path=str(lost))
    with pytest.raises(CheckpointError, match="an adapter itself"):
        af.load(twice)
