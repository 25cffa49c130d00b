"""anyformer convert writes directories and GGUF files that load again, here and elsewhere, and nothing by halves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import llamacpp
import pytest
import torch

from anyformer import families, model, spec, text
from anyformer.checkpoints.gguf import GgufFile
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


def test_from_gguf(anyformer: Callable, smollm2: Path, tmp_path: Path) -> None:
    """A GGUF file becomes a directory that continues a text as the file does."""
    assert anyformer("convert", smollm2, tmp_path / "smol", "--dtype", "bfloat16").code == 0
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


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer that a GGUF file can hold, its matrices in float32."""
    built = model.build(families.named("llama")("tiny"), seed=1)
    built.family, built.tokenizer = "llama", text.train_bpe(["low lower lowest, newer wider " * 9], 300)
    built.save(path := tmp_path_factory.mktemp("reader") / "directory")
    return path


def test_what_a_type_could_not_be_is_said(anyformer: Callable, reader: Path, tmp_path: Path) -> None:
    """Rows that are no whole blocks are in another type, which is named; where all are whole, nothing is said."""
    ran = anyformer("convert", reader, tmp_path / "k.gguf", "--type", "q4_k")
    assert ran.code == 0, ran.err
    assert "256 numbers are a block of Q4_K: rows of other lengths are in Q4_0, Q8_0\n" in ran.err
    ran = anyformer("convert", "qwen3_moe:tiny", tmp_path / "moe.gguf", "--type", "q8_0")
    assert "rows of other lengths are in F32\n" in ran.err
    ran = anyformer("convert", reader, tmp_path / "0.gguf", "--type", "q4_0")
    assert ran.code == 0 and "rows of other lengths" not in ran.err


def test_to_quantise_what_is_quantised_is_said_to_lose(anyformer: Callable, reader: Path, tmp_path: Path) -> None:
    """Not where blocks are copied as they are, nor where they become floats."""
    anyformer("convert", reader, tmp_path / "4.gguf", "--type", "q4_0")
    for type_, warned in (("q8_0", True), ("q4_0", False), ("f16", False)):
        ran = anyformer("convert", tmp_path / "4.gguf", tmp_path / f"{type_}.gguf", "--type", type_)
        assert ran.code == 0 and ("quantised already" in ran.err) == warned


def test_the_loss_before_and_after(anyformer: Callable, reader: Path, tmp_path: Path) -> None:
    """Of the model and of the file, with the change, as `evaluate` finds them; a preset, drawn anew each time, has
    none, and then nothing is written."""
    (tmp_path / "held.txt").write_text("lower and newer " * 20, encoding="utf-8")
    ran = anyformer("convert", reader, tmp_path / "4.gguf", "--type", "q4_0", "--text", tmp_path / "held.txt")
    assert ran.code == 0, ran.err
    title, before, after, change = ran.out.splitlines()
    assert title.split() == ["loss", "(nats/token)", "perplexity", "bits/byte"] and change.count("%") == 3
    for row, name in ((before, reader), (after, tmp_path / "4.gguf")):
        said = json.loads(anyformer("evaluate", name, tmp_path / "held.txt", "--json").out)
        assert row.split() == [str(name), *(f"{said[each]:.4f}" for each in ("loss", "perplexity", "bits_per_byte"))]
    assert before.split()[1:] != after.split()[1:]
    ran = anyformer("convert", "llama:tiny", tmp_path / "x.gguf", "--text", tmp_path / "held.txt")
    assert ran.code == 2 and "leave --text out" in ran.err and not (tmp_path / "x.gguf").exists()


def test_a_target_of_the_wrong_kind_is_refused(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """A directory where a file is to be, and the other way round, --force or not; both stay as they are."""
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    for arguments, said in (
        ((tmp_path, "--to", "gguf"), "is a directory; name the file to write"),
        ((tmp_path / "file",), "is a file; name a directory to write"),
    ):
        ran = anyformer("convert", talker, *arguments, "--force")
        assert ran.code == 2 and said in ran.err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_unknown_formats_are_refused(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """--to names what can be written."""
    ran = anyformer("convert", talker, tmp_path / "out", "--to", "pickle")
    assert ran.code == 2 and "huggingface" in ran.err and not (tmp_path / "out").exists()


def test_a_gguf_file_and_back(anyformer: Callable, tmp_path: Path) -> None:
    """The suffix asks for a GGUF file, in the type of --dtype; it loads as the same model, and is not replaced
    unasked."""
    train = text.train_bpe(["low lower lowest, newer wider " * 9], 300)
    built = model.build(families.named("llama")("tiny"), seed=1)
    built.family, built.tokenizer = "llama", train
    built.save(tmp_path / "directory")
    ran = anyformer("convert", tmp_path / "directory", tmp_path / "x.gguf", "--dtype", "float16")
    assert ran.code == 0 and "parameters" in ran.err
    copy = load(tmp_path / "x.gguf")
    assert copy.spec == load(tmp_path / "directory").spec and copy.dtype == torch.float16
    assert copy.tokenizer is not None and copy.tokenizer.encode(" lowest") == train.encode(" lowest")
    before = (tmp_path / "x.gguf").read_bytes()
    assert anyformer("convert", "gpt2:tiny", tmp_path / "x.gguf").code == 2
    assert (tmp_path / "x.gguf").read_bytes() == before
    ran = anyformer("convert", "gpt2:tiny", tmp_path / "x.gguf", "--force")
    assert ran.code == 0 and "holds no vocabulary" in ran.err
    assert load(tmp_path / "x.gguf").family == "gpt2"


def test_what_no_gguf_file_can_hold(anyformer: Callable, talker: Path, tmp_path: Path) -> None:
    """A tokenizer of another kind, a family without an architecture, a type of numbers: a sentence each, no file."""
    cases = {
        "merges nothing": (talker,),
        "no GGUF architecture for bart": ("bart:tiny",),
        "not float64": ("llama:tiny", "--dtype", "float64"),
    }
    for message, arguments in cases.items():
        ran = anyformer("convert", arguments[0], tmp_path / "x.out", "--to", "gguf", *arguments[1:])
        assert ran.code == 2 and message in ran.err and ran.err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []


def test_a_real_model_speaks_as_before(anyformer: Callable, smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2's quantised file, as a directory, as a GGUF file in float32 again, says what it said of itself; llama.cpp
    reads a text as the same ids and goes on with the same tokens."""
    llamacpp.library()
    assert anyformer("convert", smollm2, tmp_path / "smol").code == 0
    assert anyformer("convert", tmp_path / "smol", tmp_path / "x.gguf").code == 0
    metadata = GgufFile(tmp_path / "x.gguf").metadata
    for key, value in GgufFile(smollm2).metadata.items():
        # Its splits have several names, and what is said of spaces is of other kinds of vocabulary.
        if key.startswith(("llama.", "tokenizer.")) and not key.endswith((".pre", ".add_space_prefix")):
            assert metadata[key] == value, key
    prompt, copy = "The capital of France is", load(tmp_path / "x.gguf", device="cpu")
    assert copy.tokenizer is not None
    ids = llamacpp.tokens(tmp_path / "x.gguf", prompt)
    assert copy.tokenizer.encode(prompt) == ids
    new = copy.generate(torch.tensor([ids]), max_new_tokens=8, temperature=0)[0].tolist()
    expected = llamacpp.logits(tmp_path / "x.gguf", ids + new).argmax(-1).tolist()
    assert new == expected[len(ids) - 1 : -1]
