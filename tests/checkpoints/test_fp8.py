"""FP8 tensors are read as the matrices they stand for, and saved as those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import anyformer as af
from anyformer import families
from anyformer.errors import CheckpointError, SpecError

PACKED = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "weight_block_size": [128, 128],
    "activation_scheme": "dynamic",
    "scale_fmt": "ue8m0",
}
SCALE = "_scale_inv"
GATE = "model.layers.0.mlp.gate_proj.weight"


def dequantized(numbers: Tensor, scales: Tensor) -> Tensor:
    """Block by block, as the paper has it."""
    out = numbers.float()
    for row in range(scales.shape[0]):
        for column in range(scales.shape[1]):
            out[128 * row : 128 * row + 128, 128 * column : 128 * column + 128] *= scales[row, column]
    return out.to(torch.bfloat16)


def save_both(home: Path) -> tuple[Path, Path]:
    """One model twice: its matrices in FP8, some of them no whole number of blocks, and what those stand for."""
    torch.manual_seed(0)
    wide = {"hidden_size": 160, "intermediate_size": 256, "num_hidden_layers": 2, "vocab_size": 64}
    af.build(families.deepseek_v3("tiny", **wide), seed=1, dtype=torch.bfloat16).save(home / "plain")
    plain = load_file(home / "plain" / "model.safetensors")
    packed = dict(plain)
    for name in [name for name in plain if "_proj" in name]:
        rows, columns = plain[name].shape
        packed[name] = (100 * torch.randn(rows, columns)).to(torch.float8_e4m3fn)
        packed[name + SCALE] = torch.rand(-(-rows // 128), -(-columns // 128)) / 1000
        plain[name] = dequantized(packed[name], packed[name + SCALE])
    (home / "packed").mkdir()
    attributes = json.loads((home / "plain" / "config.json").read_text())
    (home / "packed" / "config.json").write_text(json.dumps({**attributes, "quantization_config": PACKED}))
    save_file(plain, home / "plain" / "model.safetensors")
    save_file(packed, home / "packed" / "model.safetensors")
    return home / "plain", home / "packed"


def test_a_packed_file_is_the_model_it_was_packed_from(tmp_path: Path) -> None:
    """The same tensors to the bit as block by block; saved again, it is an ordinary file of bfloat16."""
    plain, packed = save_both(tmp_path)
    ours, wanted = af.load(packed, device="cpu"), af.load(plain, device="cpu")
    assert ours.spec == wanted.spec and ours.dtype == torch.bfloat16
    for (name, one), (_, other) in zip(ours.named_parameters(), wanted.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    ours.save(tmp_path / "again")
    again, first = (load_file(home / "model.safetensors") for home in (tmp_path / "again", plain))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


def test_as_the_reference_reads_it() -> None:
    """A matrix of whole blocks is what transformers' own reader makes of it."""
    reference = pytest.importorskip("transformers.integrations.finegrained_fp8")
    numbers = (100 * torch.randn(256, 384)).to(torch.float8_e4m3fn)
    scales = torch.rand(2, 3) / 1000
    theirs = reference.Fp8Dequantize(None)._dequantize_one(numbers, scales, torch.bfloat16)
    assert torch.equal(dequantized(numbers, scales), theirs)


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.ones(2, 3), rf"{GATE}{SCALE} is F32 \(2, 3\), which is no scale for each block of 128 by 128"),
        (torch.ones(2, 2, dtype=torch.int32), rf"{GATE}{SCALE} is I32"),
        (None, rf"{GATE} is of type F8_E4M3"),
    ],
)
def test_scales_that_do_not_fit(tmp_path: Path, tensor: Tensor | None, sentence: str) -> None:
    """Scales of another shape or type, or none at all, are named."""
    _, packed = save_both(tmp_path)
    tensors = load_file(packed / "model.safetensors")
    tensors |= {} if tensor is None else {GATE + SCALE: tensor}
    if tensor is None:
        del tensors[GATE + SCALE]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        af.load(packed, device="cpu")


@pytest.mark.parametrize(
    "said", [{"quant_method": "gptq"}, {**PACKED, "weight_block_size": [64, 64]}, {**PACKED, "bits": 3}]
)
def test_other_quantizations_are_refused(said: dict[str, Any]) -> None:
    """By name, whatever is not known to be read here."""
    with pytest.raises(SpecError, match="quantization_config"):
        families.deepseek_v3("tiny", quantization_config=said)
    assert families.deepseek_v3("tiny", quantization_config=PACKED) == families.deepseek_v3("tiny")
