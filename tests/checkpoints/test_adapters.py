"""Adapters written in peft's files, and read again: the bits, the names of the reference, what the files fuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer import families
from anyformer.checkpoints import adapters
from anyformer.checkpoints.adapters import LowRank
from anyformer.errors import CheckpointError
from anyformer.planning.shapes import shapes
from anyformer.spec import Transformer

#: Families whose files keep matrices as they are, fused, fused head by head, and turned.
LAYOUTS = ("llama", "phi3", "gpt_neox", "gpt2", "t5", "bert", "deepseek_v3")


def matrices(spec: Transformer) -> dict[str, tuple[int, ...]]:
    """The matrices of attention, which no family stacks."""
    return {
        name: shape
        for name, shape in shapes(spec).items()
        if "attention." in name and len(shape) == 2 and "relative" not in name
    }


def changes(spec: Transformer, names: list[str], rank: int, scale: float) -> dict[str, LowRank]:
    generator = torch.Generator().manual_seed(0)
    wanted = shapes(spec)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {name: LowRank(numbers(rank, wanted[name][1]), numbers(wanted[name][0], rank), scale) for name in names}


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), family=st.sampled_from(LAYOUTS), rank=st.integers(1, 5))
def test_what_was_written_is_read_to_the_bit(
    data: st.DataObject, family: str, rank: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any choice of matrices, however the family's file lays them out, comes back as it was, and a whole norm too."""
    spec = families.named(family)("tiny")
    names = data.draw(st.lists(st.sampled_from(sorted(matrices(spec))), min_size=1, unique=True))
    wanted = changes(spec, names, rank, 2.0)
    stack = "encoder" if spec.decoder is None else "decoder"
    norm = next(name for name in shapes(spec) if name.startswith(f"{stack}.norm") or "embeddings.norm" in name)
    whole = {norm: torch.randn(shapes(spec)[norm])}
    directory = tmp_path_factory.mktemp("adapter")
    adapters.write(directory, wanted, whole, spec=spec, family=family, base="somewhere")
    halves, replaced = adapters.read(directory, names, whole, spec=spec, family=family)
    assert halves.keys() == wanted.keys() and replaced.keys() == whole.keys()
    for name, change in wanted.items():
        assert torch.equal(halves[name][0], change.A) and torch.equal(halves[name][1], change.B)
    assert torch.equal(replaced[norm], whole[norm])


def test_matrices_that_a_file_fuses_change_as_one(tmp_path: Path) -> None:
    """GPT-2's c_attn: B has a block of columns for query and one for value, and nothing where the key is."""
    spec = families.gpt2("tiny")
    layer = "decoder.layers.0.attention"
    wanted = changes(spec, [f"{layer}.query.weight", f"{layer}.value.weight"], rank=3, scale=4.0)
    adapters.write(tmp_path, wanted, {}, spec=spec, family="gpt2", base="b")
    saved = adapters.tensors(tmp_path)
    module = "base_model.model.transformer.h.0.attn.c_attn"
    assert saved.keys() == {f"{module}.lora_A.weight", f"{module}.lora_B.weight"}
    query, value = wanted.values()
    expected = torch.cat([query.B @ query.A, torch.zeros(64, 64), value.B @ value.A])
    torch.testing.assert_close(saved[f"{module}.lora_B.weight"] @ saved[f"{module}.lora_A.weight"], expected)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 24), "α / r stays the scale"
    assert config["fan_in_fan_out"] is True, "the file keeps its matrices as [in, out]"


def test_modules_of_another_rank_are_named(tmp_path: Path) -> None:
    """Where only some matrices are fused, the config says which modules have another rank and α than most."""
    spec = families.gpt2("tiny")
    names = [name for name in matrices(spec) if name.startswith("decoder.layers.1.")]
    adapters.write(tmp_path, changes(spec, names, rank=2, scale=1.5), {}, spec=spec, family="gpt2", base="b")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    modules = {"transformer.h.1.attn.c_attn": (6, 9), "transformer.h.1.attn.c_proj": (2, 3)}
    assert set(config["target_modules"]) == set(modules)
    for module, (rank, alpha) in modules.items():
        assert config["rank_pattern"].get(module, config["r"]) == rank
        assert config["alpha_pattern"].get(module, config["lora_alpha"]) == alpha


def test_a_base_model_has_no_prefix(tmp_path: Path) -> None:
    """The modules of a model without a head are named as transformers names those of BertModel, not BertFor..."""
    for architecture, prefix in (("BertModel", ""), ("BertForMaskedLM", "bert.")):
        spec = families.bert("tiny", architectures=[architecture])
        name = "encoder.layers.0.attention.query.weight"
        adapters.write(tmp_path, changes(spec, [name], 2, 1.0), {}, spec=spec, family="bert", base="b")
        assert f"base_model.model.{prefix}encoder.layer.0.attention.self.query.lora_A.weight" in adapters.tensors(
            tmp_path
        )


def test_files_that_are_not_whole(tmp_path: Path) -> None:
    """A missing, cut or pickled file of weights, and a config without the model, are each named."""
    with pytest.raises(CheckpointError, match=r"lacks adapter_model\.safetensors"):
        adapters.tensors(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickle"):
        adapters.tensors(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(CheckpointError, match="too few for a safetensors file"):
        adapters.tensors(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"names no base model .* af\.load\(MODEL, adapter="):
        adapters.base_of(tmp_path)
