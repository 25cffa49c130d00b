"""MXFP4 tensors are read as the matrices they stand for, and saved as those."""

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
from anyformer.checkpoints.mxfp4 import unpack
from anyformer.errors import CheckpointError, SpecError

PACKED = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
EXPERTS = "model.layers.{}.mlp.experts.{}_proj{}"


def random_blocks(*shape: int) -> tuple[Tensor, Tensor]:
    """Blocks and scales of matrices [..., out, groups]."""
    return torch.randint(256, (*shape, 16), dtype=torch.uint8), torch.randint(118, 126, shape, dtype=torch.uint8)


def save_both(home: Path) -> tuple[Path, Path]:
    """One model twice: its experts in blocks, and as the reference unpacks them."""
    reference = pytest.importorskip("transformers.integrations.mxfp4")
    torch.manual_seed(0)
    af.build(families.gpt_oss("tiny", intermediate_size=32), seed=1, dtype=torch.bfloat16).save(home / "plain")
    plain = load_file(home / "plain" / "model.safetensors")
    packed = dict(plain)
    for layer, (name, rows, groups) in ((i, m) for i in range(2) for m in (("gate_up", 64, 2), ("down", 64, 1))):
        blocks, scales = random_blocks(4, rows, groups)
        matrix = EXPERTS.format(layer, name, "")
        plain[matrix] = reference._convert_moe_packed_tensors(blocks, scales)
        assert packed.pop(matrix).shape == plain[matrix].shape
        packed |= {f"{matrix}_blocks": blocks, f"{matrix}_scales": scales}
    (home / "packed").mkdir()
    attributes = json.loads((home / "plain" / "config.json").read_text())
    (home / "packed" / "config.json").write_text(json.dumps({**attributes, "quantization_config": PACKED}))
    save_file(plain, home / "plain" / "model.safetensors")
    save_file(packed, home / "packed" / "model.safetensors")
    return home / "plain", home / "packed"


def test_what_the_bits_mean() -> None:
    """The lower four bits come first; the eighth bit is the sign; the scale is a power of two."""
    blocks, scales = torch.zeros(1, 16, dtype=torch.uint8), torch.tensor([130], dtype=torch.uint8)
    blocks[0, 0], blocks[0, 15] = 0x71, 0xA0
    numbers = unpack(blocks, scales)
    assert numbers[:2].tolist() == [0.5 * 8, 6.0 * 8] and numbers[30:].tolist() == [0.0, -1.0 * 8]
    assert not numbers[2:30].any()


def test_a_packed_file_is_the_model_it_was_packed_from(tmp_path: Path) -> None:
    """The same tensors to the bit as the reference unpacks; saved again, it is an ordinary file of bfloat16."""
    plain, packed = save_both(tmp_path)
    ours, wanted = af.load(packed, device="cpu"), af.load(plain, device="cpu")
    assert ours.spec == wanted.spec and {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    for (name, one), (_, other) in zip(ours.named_parameters(), wanted.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    ours.save(tmp_path / "again")
    again, first = (load_file(home / "model.safetensors") for home in (tmp_path / "again", plain))
    assert again.keys() == first.keys() and all(torch.equal(again[name], first[name]) for name in first)
    assert "quantization_config" not in json.loads((tmp_path / "again" / "config.json").read_text())


@pytest.mark.parametrize(
    ("scales", "sentence"),
    [
        (torch.zeros(4, 64, 3, dtype=torch.uint8), r"gate_up_proj_scales U8 \(4, 64, 3\), which is no MXFP4"),
        (torch.zeros(4, 64, 2), r"gate_up_proj_scales F32 \(4, 64, 2\), which is no MXFP4"),
        (None, r"lacks model.layers.1.mlp.experts.gate_up_proj"),
    ],
)
def test_blocks_that_do_not_fit(tmp_path: Path, scales: Tensor | None, sentence: str) -> None:
    """Scales of another shape or type, or none at all, are named."""
    _, packed = save_both(tmp_path)
    tensors = load_file(packed / "model.safetensors")
    name = EXPERTS.format(1, "gate_up", "_scales")
    tensors |= {name: tensors[name] if scales is None else scales}
    if scales is None:
        del tensors[name]
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        af.load(packed, device="cpu")


@pytest.mark.parametrize("said", [{"quant_method": "gptq"}, {**PACKED, "bits": 3}])
def test_other_quantizations_are_refused(said: dict[str, Any]) -> None:
    """By name, whatever is not known to be read here."""
    with pytest.raises(SpecError, match="quantization_config"):
        families.gpt_oss("tiny", quantization_config=said)
    assert families.gpt_oss("tiny", quantization_config=PACKED) == families.gpt_oss("tiny")
