"""Opening what a reference names: directories, GGUF files, and whatever is neither."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from safetensors.torch import load_file
from torch import Tensor

from anyformer import checkpoints, families
from anyformer.checkpoints.tensors import unload
from anyformer.errors import CheckpointError, SpecError
from anyformer.planning.shapes import count, shapes
from anyformer.spec import Llama3Scaling, Rotary, Transformer
from anyformer.text.bytelevel import byte_alphabet

#: Sizes that K-quants can hold (rows of 256), with head_dim ≠ D/H and odd groups of heads.
ODD = {
    "hidden_size": 256,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "intermediate_size": 512,
    "vocab_size": 260,
}


def numbers(spec: Transformer) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes(spec).items()}


def write_gguf(path: Path, spec: Transformer, kind: str = "F32", extra: dict[str, Any] | None = None) -> None:
    """A GGUF file of a llama, written with ggml's own package; matrices of `kind`, vectors in float32."""
    stack = spec.output
    attention = next(stack.attentions())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(stack.depth)
    writer.add_context_length(spec.context or 64)
    writer.add_embedding_length(stack.dim)
    writer.add_feed_forward_length(512)
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_rope_dimension_count(attention.head_dim)
    assert isinstance(attention.position, Rotary)
    writer.add_rope_freq_base(attention.position.base)
    writer.add_layer_norm_rms_eps(stack.norm.eps if stack.norm is not None else 0.0)
    writer.add_vocab_size(stack.embeddings.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*byte_alphabet().values(), "ab", "<s>", "</s>", "<end>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 3)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_uint32("tokenizer.ggml.eot_token_id", 259)
    for name, value in (extra or {}).items():
        if isinstance(value, np.ndarray):
            writer.add_tensor(name, value)
        else:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    table = families.llama.gguf
    assert table is not None
    saved, _ = unload(numbers(spec), spec, table.tensors(spec))
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in saved.items():
        array = tensor.contiguous().numpy()
        if tensor.ndim > 1:
            writer.add_tensor(name, quantize(array, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_gguf(tmp_path: Path, kind: str, tied: bool) -> None:
    """A llama's GGUF file gives its spec, and its numbers as exactly as their type holds them, in our order of rows."""
    spec = families.llama("tiny", **ODD, tie_word_embeddings=tied, attention_bias=True, mlp_bias=True)
    write_gguf(tmp_path / "x.gguf", spec, kind)
    found = checkpoints.open(tmp_path / "x.gguf")
    assert found.spec == spec and found.family == "llama"
    assert found.generation == {"bos_token_id": 257, "eos_token_id": [258, 259]}
    assert found.dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(kind, torch.float32)
    quantised = gguf.GGMLQuantizationType[kind]
    for name, tensor in numbers(spec).items():
        expected = tensor
        if tensor.ndim > 1:
            expected = torch.from_numpy(dequantize(quantize(tensor.numpy(), quantised), quantised))
        assert torch.equal(found.tensors[name].float(), expected), name


def divisors(scaling: Llama3Scaling, base: float, head_dim: int) -> np.ndarray:
    """What Llama 3.1's rotary frequencies are divided by (meta-llama's `apply_scaling`)."""
    found = []
    for channel in range(0, head_dim, 2):
        length = 2 * math.pi * base ** (channel / head_dim)
        if length < scaling.original_context / scaling.high:
            found.append(1.0)
        elif length > scaling.original_context / scaling.low:
            found.append(scaling.factor)
        else:
            smooth = (scaling.original_context / length - scaling.low) / (scaling.high - scaling.low)
            found.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(found, dtype=np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_of_a_gguf_file(tmp_path: Path, factor: float) -> None:
    """Stored as divisors of the frequencies, it is the same scaling as in config.json; other divisors are refused."""
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 8192
    spec = families.llama("tiny", **ODD, rope_theta=500000.0, rope_scaling=scaling)
    position = next(spec.output.attentions()).position
    assert isinstance(position, Rotary) and position.scaling is not None
    stored = divisors(position.scaling, 500000.0, 32)
    write_gguf(tmp_path / "x.gguf", spec, extra={"rope_freqs.weight": stored})
    found = checkpoints.open(tmp_path / "x.gguf")
    assert found.spec == spec
    assert "scaling" in found.carried.reasons["rope_freqs.weight"]
    write_gguf(tmp_path / "y.gguf", spec, extra={"rope_freqs.weight": stored**0.9})
    with pytest.raises(SpecError, match=r"y.gguf: rope_freqs.weight does not hold the divisors"):
        checkpoints.open(tmp_path / "y.gguf")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.mystery", 3, r"no such attribute is known: 'llama.mystery' \(af.load\(..., ignore=\['llama.mystery'\]"),
        ("llama.expert_count", 8, "llama.expert_count is 8; only 0 is understood"),
        ("llama.rope.scaling.type", "dynamic", "llama.rope.scaling.type is 'dynamic', of which"),
        ("llama.attention.value_length", 16, "llama.attention.value_length is 16; only 32 is understood"),
        ("llama.attention.clamp_kqv", 8.0, "llama.attention.clamp_kqv is 8.0; only 0.0 is understood"),
        ("llama.expert_gating_func", 2, "llama.expert_gating_func is 2; only 1 is understood"),
    ],
)
def test_metadata_of_another_model(tmp_path: Path, key: str, value: Any, message: str) -> None:
    """Every key under the architecture's name is accounted for, as every attribute of a config is."""
    write_gguf(tmp_path / "x.gguf", families.llama("tiny", **ODD), extra={key: value})
    with pytest.raises(SpecError, match=rf"x.gguf: {message}"):
        checkpoints.open(tmp_path / "x.gguf")
    assert checkpoints.open(tmp_path / "x.gguf", ignore=[key]).spec == families.llama("tiny", **ODD)


def test_tensors_of_another_model(tmp_path: Path) -> None:
    """A tensor that the architecture has no place for is named."""
    extra = {"blk.0.attn_mystery.weight": np.ones(3, dtype=np.float32)}
    write_gguf(tmp_path / "x.gguf", families.llama("tiny", **ODD), extra=extra)
    with pytest.raises(CheckpointError, match=r"x.gguf holds blk.0.attn_mystery.weight"):
        checkpoints.open(tmp_path / "x.gguf")


def test_an_unknown_gguf_architecture(tmp_path: Path) -> None:
    """Named, with those that are known."""
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "rwkv6")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SpecError, match=r"x.gguf: no family reads the GGUF architecture 'rwkv6'; known are .*llama"):
        checkpoints.open(tmp_path / "x.gguf")


def test_from_gguf_to_a_directory(tmp_path: Path) -> None:
    """What was read from a GGUF file is saved as a directory that says the same."""
    spec = families.llama("tiny", **ODD)
    write_gguf(tmp_path / "x.gguf", spec, "Q8_0")
    found = checkpoints.open(tmp_path / "x.gguf")
    checkpoints.write(
        tmp_path / "out",
        spec=found.spec,
        tensors=found.tensors,
        family=found.family,
        generation=found.generation,
        tokenizer=found.tokenizer,
        carried=found.carried,
    )
    again = checkpoints.open(tmp_path / "out")
    assert (again.spec, again.generation) == (spec, found.generation)
    assert again.tokenizer is not None
    assert all(torch.equal(again.tensors[name], found.tensors[name]) for name in found.tensors)


def test_numbers_of_single_precision_are_read_as_they_were_meant(tmp_path: Path) -> None:
    """1e-05 in single precision is 1e-05, not 9.999999747378752e-06."""
    spec = families.llama("tiny", **ODD, rms_norm_eps=1e-5, rope_theta=130000.7)
    write_gguf(tmp_path / "x.gguf", spec)
    assert checkpoints.open(tmp_path / "x.gguf").spec == spec


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("lama:tiny", r"no file 'lama:tiny', and no family of its name: .*bert.*llama"),
        ("/no/such/place", r"there is no file or directory '/no/such/place' \(a model on a hub is named org/name\)"),
        ("./nothing", "there is no file or directory './nothing'"),
    ],
)
def test_nothing_there(reference: str, message: str) -> None:
    """What is not there is told apart: a preset misspelled, a path."""
    with pytest.raises(CheckpointError, match=message):
        checkpoints.open(reference)


def test_minilm(minilm_zip: Path, tmp_path: Path) -> None:
    """The published file: its pooler and position_ids left aside and carried, saved again the same to the byte."""
    ZipFile(minilm_zip).extractall(tmp_path / "a")
    found = checkpoints.open(tmp_path / "a")
    assert found.spec == families.bert("minilm-l6")
    assert found.carried.tensors.keys() == {"embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"}
    assert found.tokenizer is not None
    checkpoints.write(
        tmp_path / "b",
        spec=found.spec,
        tensors=found.tensors,
        family=found.family,
        generation=found.generation,
        tokenizer=found.tokenizer,
        carried=found.carried,
    )
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert checkpoints.open(tmp_path / "b").spec == found.spec


def test_smollm2(smollm2: Path) -> None:
    """The published Q4_1 file: 134,515,008 parameters of the preset's very spec, tied, with tokenizer and template."""
    found = checkpoints.open(smollm2)
    assert found.spec == families.llama("135m") and count(found.spec) == 134_515_008
    assert sum(math.prod(found.tensors[name].shape) for name in found.tensors) == 134_515_008
    assert found.generation["eos_token_id"] == 2
    assert found.tokenizer is not None and found.tokenizer.chat_template is not None
