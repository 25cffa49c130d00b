"""GGUF files in blocks: written, read again, copied as they are, and judged by llama.cpp."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import llamacpp
import pytest
import torch
import torch.nn.functional as F
from gguf_odd import numbers

import anyformer as af
from anyformer import checkpoints, families
from anyformer.checkpoints.gguf import GgufFile
from anyformer.checkpoints.gguf_writing import _Described as Described
from anyformer.checkpoints.gguf_writing import _write as fill
from anyformer.checkpoints.gguf_writing import write_gguf
from anyformer.checkpoints.quantizing import quantize
from anyformer.model.saving import blocks_of
from anyformer.parts.blocks import FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_in_blocks(name: str, tmp_path: Path) -> None:
    """Matrices are in the format asked for or the nearest that fits, vectors in float32; the types that are told are
    the file's; numbers are those of the quantiser; and blocks are copied to the byte, whatever their order of rows."""
    spec, path = families.named("llama")("tiny", hidden_size=256, intermediate_size=320), tmp_path / "x.gguf"
    drawn = numbers(spec, 1)
    kinds = write_gguf(path, spec=spec, tensors=drawn, dtype=torch.float32, format=FORMATS[name], family="llama")
    file = GgufFile(path)
    assert kinds == {key: info.type for key, info in file.tensors.items()}
    assert kinds["blk.0.attn_q.weight"] == name and kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["blk.0.ffn_down.weight"] == {"Q4_K": "Q4_0", "Q6_K": "Q8_0"}.get(name, name)
    assert kinds["token_embd.weight"] == ("Q8_0" if name == "Q8_0" else "Q6_K")
    found = checkpoints.open(path)
    up = "decoder.layers.1.feed_forward.up.weight"
    assert torch.equal(found.blocks[up].data, quantize(drawn[up], FORMATS[name]).data)
    assert torch.equal(found.tensors[up], found.blocks[up].dequantize())
    query = "decoder.layers.0.attention.query.weight"
    assert torch.equal(found.tensors[query], found.blocks[query].dequantize())
    same = {"spec": found.spec, "dtype": torch.float32, "family": "llama", "tensors": found.tensors}
    write_gguf(tmp_path / "y.gguf", **same, blocks=found.blocks, generation=found.generation)
    write_gguf(tmp_path / "z.gguf", **same, blocks=found.blocks, format=FORMATS[name], generation=found.generation)
    for copy in (GgufFile(tmp_path / "y.gguf"), GgufFile(tmp_path / "z.gguf")):
        assert all(torch.equal(copy.stored(key), file.stored(key)) for key in file.tensors)


@torch.no_grad()
def test_formats_without_products_become_8_bits(tmp_path: Path) -> None:
    """A file in Q5_0, which nothing here multiplies, is no model in floats: kept, its matrices are the nearest to what
    they stand for in Q8_0; as numbers they are what they stand for."""
    write_gguf(tmp_path / "floats.gguf", spec=(spec := families.named("llama")("tiny")), tensors=numbers(spec, 3),
               dtype=torch.float32, family="llama")  # fmt: skip
    floats = GgufFile(tmp_path / "floats.gguf")
    kinds = {name: "Q5_0" if len(info.shape) > 1 else "F32" for name, info in floats.tensors.items()}
    described = {name: Described(torch.Size(floats.tensors[name].shape), kind) for name, kind in kinds.items()}
    data = {name: gguf.quantize(floats.read(name).numpy(), gguf.GGMLQuantizationType[kinds[name]]) for name in kinds}
    fill(tmp_path / "x.gguf", floats.metadata, described, {name: torch.from_numpy(each) for name, each in data.items()})
    found = checkpoints.open(tmp_path / "x.gguf")
    assert not found.blocks and "decoder.layers.0.feed_forward.up.weight" in found.quantised
    model = af.load(tmp_path / "x.gguf", device="cpu", quantize="auto")
    assert model.quantization is not None and set(model.quantization.formats.values()) == {"Q8_0"}
    assert not model.quantization.whole
    up = found.tensors["decoder.layers.0.feed_forward.up.weight"]
    assert (
        float((blocks_of(model)["decoder.layers.0.feed_forward.up.weight"].dequantize() - up).norm() / up.norm()) < 0.01
    )


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_llama_cpp_agrees(name: str, tmp_path: Path) -> None:
    """llama.cpp loads a file in each type, and predicts what the same file kept in blocks does, but for the 8 bits to
    which it rounds what flows as well: logits within a twentieth, and the loss of so few tokens within a fiftieth."""
    llamacpp.library()
    spec, path = families.named("llama")("tiny", hidden_size=256, vocab_size=256), tmp_path / "x.gguf"
    write_gguf(path, spec=spec, tensors=numbers(spec, 2), dtype=torch.float32, format=FORMATS[name], family="llama")
    ids = torch.randint(0, 256, (48,), generator=torch.Generator().manual_seed(0))
    ours = af.load(path, device="cpu", quantize="keep")(ids[None]).logits[0]
    theirs = llamacpp.logits(path, ids.tolist())
    losses = [float(F.cross_entropy(logits[:-1], ids[1:])) for logits in (ours, theirs)]
    assert abs(losses[0] - losses[1]) < 0.02
    assert float((ours - theirs).norm() / theirs.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
@torch.no_grad()
def test_a_real_model_s_perplexity_is_llama_cpp_s(name: str, smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2, written anew in 8 and in 4 bits: on a page of English, its perplexity there and here differ by less than
    half a percent."""
    llamacpp.library()
    page = Path(__file__).parents[3] / "shared" / "data" / "gutenberg" / "carroll-alice.txt"
    if not page.is_file():
        pytest.skip("the texts of ../shared/data are not here")
    source = checkpoints.open(smollm2)
    path = tmp_path / "x.gguf"
    parts = {key: getattr(source, key) for key in ("spec", "tensors", "family", "generation", "tokenizer")}
    write_gguf(path, **parts, dtype=torch.float32, format=FORMATS[name])
    model = af.load(path, device="cpu", quantize="keep")
    assert model.tokenizer is not None
    ids = torch.tensor(model.tokenizer.encode(page.read_text(encoding="utf-8")[2000:10000]))[:1024].view(-1, 64)
    ours = sum(float(F.cross_entropy(model(row[None]).logits[0, :-1], row[1:])) for row in ids) / len(ids)
    theirs = sum(float(F.cross_entropy(llamacpp.logits(path, row.tolist())[:-1], row[1:])) for row in ids) / len(ids)
    assert abs(math.exp(ours - theirs) - 1) < 0.005
