"""anyformer convert writes directories that load again, here and elsewhere, and nothing by halves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from anyformer import model, spec
from anyformer.model import load


def test_what_is_written_is_the_model(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """The copy has the same spec, tensors and tokenizer; it loads in the reference implementation."""
    ran = anyformer("convert", talker, tmp_path / "copy")
    assert ran.code == 0 and "parameters" in ran.err
    before, after = load(talker), load(tmp_path / "copy")
    assert after.spec == before.spec
    assert all(torch.equal(tensor, after.state_dict()[name]) for name, tensor in before.state_dict().items())
    assert after.tokenizer is not None and after.tokenizer.encode("é") == [0xC3, 0xA9]
    theirs = pytest.importorskip("transformers").LlamaForCausalLM.from_pretrained(tmp_path / "copy")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, before(ids).logits, atol=1e-4)


def test_dtype(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """--dtype is what the copy's numbers are."""
    assert anyformer("convert", talker, tmp_path / "half", "--dtype", "bfloat16").code == 0
    assert load(tmp_path / "half").dtype == torch.bfloat16


def test_from_gguf(anyformer: Callable, smollm: Path, tmp_path: Path) -> None:
    """A GGUF file becomes a directory that continues a text as the file does."""
    assert anyformer("convert", smollm, tmp_path / "smol", "--dtype", "bfloat16").code == 0
    assert (tmp_path / "smol" / "config.json").exists()
    assert load(tmp_path / "smol").generate(["The capital of France is"], max_new_tokens=1) == [" Paris"]


def test_what_is_there_is_not_replaced_unasked(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """A directory that holds something is refused, and replaced with --force."""
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    ran = anyformer("convert", talker, tmp_path)
    assert ran.code == 2 and "--force" in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert anyformer("convert", talker, tmp_path, "--force").code == 0
    assert (tmp_path / "notes.txt").exists() and (tmp_path / "model.safetensors").exists()


def test_what_no_other_tool_could_load(anyformer: Callable, tmp_path: Path) -> None:
    """A model that no config.json can express is refused as such, and written with --to anyformer."""
    attention = spec.Attention(heads=2, kv_heads=1, head_dim=4, visibility="causal", sinks=True, soft_cap=5.0)
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms"), placement="both"),))
    stack = spec.Stack(dim=8, depth=2, pattern=(block,), embeddings=spec.Embeddings(vocabulary=20))
    model.build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead())).save(tmp_path / "odd")
    refused = anyformer("convert", tmp_path / "odd", tmp_path / "out")
    assert refused.code == 2 and "--to anyformer" in refused.err and not (tmp_path / "out").exists()
    assert anyformer("convert", tmp_path / "odd", tmp_path / "out", "--to", "anyformer").code == 0
    assert load(tmp_path / "out").spec == load(tmp_path / "odd").spec


def test_unknown_formats_are_refused(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """--to names what can be written."""
    ran = anyformer("convert", talker, tmp_path / "out", "--to", "pickle")
    assert ran.code == 2 and "huggingface" in ran.err and not (tmp_path / "out").exists()
