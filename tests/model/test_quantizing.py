"""Models in blocks: the same functions as their dequantised twins, with the rest of a model's life."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor

import anyformer as af
from anyformer import families
from anyformer.checkpoints import Carried, Checkpoint
from anyformer.checkpoints.gguf import GgufFile
from anyformer.errors import CheckpointError, InputError
from anyformer.model import Transformer
from anyformer.model.quantizing import unfilled
from anyformer.model.saving import blocks_of
from anyformer.parts.kernels import native
from anyformer.parts.quantized import QuantizedEmbedding, QuantizedLinear


def plain(model: Transformer) -> Transformer:
    """A quantised model's twin in float32: its blocks dequantised."""
    twin = af.build(model.spec)
    numbers = {name: blocks.dequantize() for name, blocks in blocks_of(model).items()}
    state = {**{name: tensor.float() for name, tensor in model.state_dict().items() if "blocks" not in name}, **numbers}
    twin.load_state_dict(state)
    return twin.eval()


#: Families of every shape and head; T5 shares one table between its stacks, and between them and the head.
SHAPES = ("llama", "gpt2", "bert", "t5", "bart", "gemma3", "deepseek_v3", "gpt_oss", "qwen3_moe", "mpt")


@pytest.mark.parametrize(("name", "how"), [*((name, "int4") for name in SHAPES), ("llama", "int8")])
@torch.no_grad()
def test_a_model_in_blocks_is_its_dequantised_twin(name: str, how: str) -> None:
    """Every family's logits are those of the same numbers in floats; embeddings, heads and layers are in blocks. The
    native kernels are left out, for they round what they multiply few rows with (an expert's, say) to 8 bits."""
    model = af.load(f"{name}:tiny", device="cpu", quantize=how)
    assert model.quantization is not None and model.quantization.how == how
    ids = torch.randint(4, 200, (2, native.FEW // 2 + 1), generator=torch.Generator().manual_seed(0))
    more = {"source": ids.flip(1)} if model.spec.encoder is not None and model.spec.decoder is not None else {}
    with mock.patch.object(native, "library", lambda: None):
        found, expected = model(ids, **more), plain(model)(ids, **more)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-3, atol=1e-4)
    if found.logits is not None:
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-3, atol=1e-3)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {"attention", "tokens"} <= {part for each in model.quantization.formats for part in each.split(".")}


def test_what_stays_in_floats_is_said() -> None:
    """Routers, and rows that are no whole blocks, keep their floats, with the reason; the sum of bytes is that of the
    blocks."""
    spec = families.named("qwen3_moe")("tiny", hidden_size=48, num_attention_heads=4, head_dim=16)
    model = af.build(spec)
    model.family = "qwen3_moe"
    checkpoint = Checkpoint(spec, dict(model.named_parameters()), "qwen3_moe", {}, None, Carried(), torch.float32)
    said = unfilled(checkpoint, "int4", torch.float32, "cpu").quantization
    assert said is not None
    reasons = {name.rpartition(".")[2]: reason for name, reason in said.whole.items()}
    assert reasons["router"].startswith("a router") and reasons["query"] == "rows are no whole blocks"
    assert said.formats["decoder.layers.0.attention.output"] == "Q4_0"
    assert "in floats: a router" in str(said)


def test_a_damaged_matrix_is_named(tmp_path: Path) -> None:
    """With the checkpoint, where it cannot be quantised."""
    model = af.load("llama:tiny", device="cpu")
    with torch.no_grad():
        model.decoder.layers[1].feed_forward.up.weight[3, 5] = torch.nan
    model.save(tmp_path / "damaged")
    with pytest.raises(CheckpointError, match=r"damaged: decoder\.layers\.1\.feed_forward\.up\.weight: .* not finite"):
        af.load(tmp_path / "damaged", device="cpu", quantize="int4")


def test_keep_computes_with_the_file_s_own_bytes(smollm2: Path) -> None:
    """Blocks are those of the file, mapped and not copied but for queries, keys and values (whose rows are put in our
    order); logits are those of the dequantised model, and so are the words."""
    model, floats = af.load(smollm2, device="cpu", quantize="keep"), af.load(smollm2, device="cpu")
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    file = GgufFile(smollm2)
    down = model.decoder.layers[3].feed_forward.down
    assert isinstance(down, QuantizedLinear) and down.format.name == "Q4_1"
    assert torch.equal(down.blocks, file.stored("blk.3.ffn_down.weight"))
    first = model.decoder.layers[3].feed_forward
    assert first.gate.blocks.data_ptr() + first.gate.blocks.numel() == first.up.blocks.data_ptr()
    assert first.gate.blocks.untyped_storage().data_ptr() == down.blocks.untyped_storage().data_ptr()
    own = model.decoder.layers[3].attention
    assert own.query.blocks.data_ptr() + own.query.blocks.numel() == own.key.blocks.data_ptr()
    table = model.decoder.embeddings.tokens
    assert isinstance(table, QuantizedEmbedding) and model.head.output.blocks is table.blocks
    prompt = ["The capital of France is"]
    ids = torch.tensor([model.tokenizer.encode(prompt[0])])
    with torch.no_grad():
        found, expected = model(ids).logits, floats(ids).logits
        with mock.patch.object(native, "library", lambda: None):
            exact = model(ids).logits
    assert float((exact - expected).abs().max() / expected.abs().max()) < 1e-5
    # The native kernels round inputs to 8 bits; this model has inputs of which a few are far larger than the rest.
    assert float((found - expected).abs().mean() / expected.abs().mean()) < 0.1
    assert model.generate(prompt, max_new_tokens=3) == floats.generate(prompt, max_new_tokens=3)


def test_a_cast_leaves_blocks_alone() -> None:
    """`.to(bfloat16)` turns norms and what flows; blocks and the bytes of the head's table stay the same, and tied."""
    model = af.load("llama:tiny", device="cpu", quantize="int8").to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert model.decoder.layers[0].attention_norm.weight.dtype == torch.bfloat16
    assert model.head.output.blocks is model.decoder.embeddings.tokens.blocks
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.dtype == torch.bfloat16


def test_saved_as_a_gguf_file_and_kept(tmp_path: Path) -> None:
    """A quantised model is saved under a name that ends in .gguf, and is the same blocks when that file is kept; what a
    directory cannot hold is refused."""
    model = af.load("llama:tiny", device="cpu", quantize="int4")
    with pytest.raises(InputError, match=r"only a GGUF file holds a quantised model"):
        model.save(tmp_path / "directory")
    model.save(tmp_path / "x.gguf")
    again = af.load(tmp_path / "x.gguf", device="cpu", quantize="keep")
    assert list(tmp_path.iterdir()) == [tmp_path / "x.gguf"]
    before, after = blocks_of(model), blocks_of(again)
    assert before.keys() == after.keys()
    assert all(torch.equal(blocks.data, after[name].data) for name, blocks in before.items())
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    # One that is no longer quantised can be quantised again, and is the same where the formats are.
    third = af.load(tmp_path / "x.gguf", device="cpu", quantize="int4")
    assert all(torch.equal(blocks.data, after[name].data) for name, blocks in blocks_of(third).items())


def test_gradients_of_the_input() -> None:
    """A loss through a quantised model has gradients for activations, and none for its parameters."""
    model = af.load("llama:tiny", device="cpu", quantize="int8")
    seen: list[Tensor] = []
    model.decoder.embeddings.register_forward_hook(lambda module, given, out: seen.append(out.requires_grad_()))
    model(torch.tensor([[1, 2, 3]]), targets=torch.tensor([[2, 3, 4]])).loss.backward()
    assert seen[0].grad is not None and bool(seen[0].grad.any())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_refusals() -> None:
    """What cannot be done with, or to, a quantised model is one sentence."""
    with pytest.raises(InputError, match="quantised to int8, int4, or keep as its file has it, not to 'int3'"):
        af.load("llama:tiny", quantize="int3")
    with pytest.raises(InputError, match="llama:tiny holds no blocks to keep"):
        af.load("llama:tiny", quantize="keep")
    model = af.load("llama:tiny", device="cpu", quantize="int8")
    with pytest.raises(InputError, match="a quantised model does not learn"):
        model.train()
    assert not model.training
