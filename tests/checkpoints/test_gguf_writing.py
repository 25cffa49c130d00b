"""GGUF files of every architecture: written and read again, read from quantised files, and judged by llama.cpp."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import llamacpp
import pytest
import torch
from gguf.quants import dequantize, quantize
from gguf_odd import head_of, numbers, odd_gguf_spec, with_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from odd import apply
from torch import Tensor

from anyformer import checkpoints, families, model
from anyformer.checkpoints.gguf import GgufFile
from anyformer.checkpoints.gguf_writing import expressed, write_gguf
from anyformer.checkpoints.tensors import load, unload
from anyformer.checkpoints.weights import Saved
from anyformer.errors import AnyformerError, CheckpointError, SpecError
from anyformer.families.gguf import check, read
from anyformer.families.gguf_facts import FACTS
from anyformer.families.latent_attention import LATENT_NORM
from anyformer.model.building import fill, unfilled
from anyformer.spec import EmbeddingHead, Transformer

FAMILIES = with_gguf()
#: What the package can quantise; one type after the other, tensor by tensor.
QUANTISERS = ("Q8_0", "Q4_0", "F16", "Q4_1", "Q5_0", "BF16", "Q5_1", "MXFP4")


def write(path: Path, spec: Transformer, tensors: dict[str, Tensor], family: str, **more: Any) -> Path:
    write_gguf(path, spec=spec, tensors=tensors, family=family, **{"dtype": torch.float32, **more})
    return path


@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_written_is_read_again(name: str, seed: int, tmp_path: Path) -> None:
    """A file says all that the spec computes and keeps its numbers to the bit (norms of 1 + w to their rounding); what
    is written from it again is the same file."""
    spec = odd_gguf_spec(name, seed)
    drawn = numbers(spec, seed)
    generation = {**families.named(name).generation, "bos_token_id": 3, "eos_token_id": [5, 4], "pad_token_id": 0}
    path = write(tmp_path / "x.gguf", spec, drawn, name, generation=generation)
    found = checkpoints.open(path)
    check(spec, found.spec)
    assert found.tokenizer is None
    assert found.generation == generation
    for key, tensor in drawn.items():
        if spec.output.norm is not None and spec.output.norm.unit_offset and "norm.weight" in key:
            torch.testing.assert_close(found.tensors[key], tensor, rtol=0, atol=2e-7)
        else:
            assert torch.equal(found.tensors[key], tensor), key
    again = {key: found.tensors[key] for key in found.tensors}
    assert found.family is not None
    write(tmp_path / "y.gguf", found.spec, again, found.family, generation=found.generation)
    assert (tmp_path / "y.gguf").read_bytes() == path.read_bytes()


class Memory:
    """Saved tensors that lie in memory."""

    where = "memory"

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors
        self.saved: Mapping[str, Saved] = {name: Saved(tuple(tensor.shape), "F32") for name, tensor in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self._tensors[name]


def run(built: Any, ids: list[int]) -> Tensor:
    """Logits [T, V], or hidden states [T, D] of a model without; an encoder-decoder reads the ids backwards."""
    more = {"source": torch.tensor([ids[::-1]])} if built.spec.shape == "encoder-decoder" else {}
    with torch.no_grad():
        out = built(torch.tensor([ids]), **more)
    return (out.hidden if built.spec.head.kind == "embedding" else out.logits)[0]


def filled(spec: Transformer, tensors: Any) -> Any:
    built = unfilled(spec, torch.float32, "cpu").eval()
    fill(built, tensors)
    return built


def some_ids(spec: Transformer, count: int = 12) -> list[int]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, spec.output.embeddings.vocabulary, (count,), generator=generator).tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_quantised_files_are_read(name: str, tmp_path: Path) -> None:
    """A file as the package's own quantisers write it, a type for every matrix in turn where its rows fill blocks: the
    model computes what it computes with the dequantised numbers."""
    family = families.named(name)
    spec = family("tiny", architectures=[head_of(family)])
    assert family.gguf is not None
    written, table = expressed(spec, name)[1], family.gguf.tensors(spec)
    saved, _ = unload(numbers(spec), spec, table)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", family.gguf.architecture)
    for key, value in {**written.metadata, "tokenizer.ggml.model": "none"}.items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    expected, used = {}, set()
    for index, each in enumerate(saved):
        array, kind = saved[each].contiguous().numpy(), gguf.GGMLQuantizationType[QUANTISERS[index % len(QUANTISERS)]]
        if array.ndim > 1 and array.shape[-1] % 32 == 0:
            blocks = quantize(array, kind)
            writer.add_tensor(each, blocks, raw_dtype=kind)
            array = dequantize(blocks, kind)
            used.add(kind.name)
        else:
            writer.add_tensor(each, array)
        expected[each] = torch.from_numpy(array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(used) > 4
    loaded = model.load(tmp_path / "q.gguf", "float32", "cpu")
    check(spec, loaded.spec)
    ids = some_ids(spec)
    assert torch.equal(run(loaded, ids), run(filled(spec, load(Memory(expected), spec, table).tensors), ids))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    """Matrices stand in the type that is asked for, vectors in float32, where a norm's 1 + w is not rounded."""
    spec = families.named("gemma3")("tiny")
    drawn = {name: tensor.to(dtype) for name, tensor in numbers(spec).items()}
    path = write(tmp_path / "x.gguf", spec, drawn, "gemma3", dtype=dtype)
    types = {name: info.type for name, info in GgufFile(path).tensors.items()}
    matrix = {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    assert types["token_embd.weight"] == types["blk.0.ffn_up.weight"] == matrix
    assert {kind for name, kind in types.items() if "norm" in name} == {"F32"}
    found = checkpoints.open(path)
    assert found.dtype == dtype
    for name, tensor in drawn.items():
        exact = "norm.weight" not in name
        torch.testing.assert_close(found.tensors[name].to(dtype), tensor, rtol=0, atol=0 if exact else 2e-7)


@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("name", FAMILIES)
def test_llama_cpp_computes_the_same(name: str, seed: int, tmp_path: Path) -> None:
    """llama.cpp loads what is written here and computes the same logits (hidden states of an encoder). It computes
    GELU from a table in half precision, T5's output without its scale, no window in LLaMA and Phi-3 files, YaRN's ramp
    in whole channels only, where gpt-oss has it run between them, and the norms of latent rows by the epsilon of all
    others."""
    spec = odd_gguf_spec(name, seed)
    if spec.encoder is not None and spec.decoder is not None:
        spec = spec.replace(decoder=spec.decoder.replace(depth=spec.encoder.depth))  # it loads no deeper one
    if name == "deepseek_v3":
        spec = Transformer.from_data(apply(spec.model_dump(), {"rms": {"eps": LATENT_NORM.eps}}))
    drawn = numbers(spec, seed)
    path = write(tmp_path / "x.gguf", spec, drawn, name)
    ids = some_ids(spec)
    if name in ("mistral", "mixtral", "phi3"):
        ids = ids[: min([12, *(mixer.window[0] or 12 for mixer in spec.output.attentions() if mixer.window)])]
    rounded = Transformer.from_data(apply(spec.model_dump(), {"yarn": {"truncate": True}}))
    found = run(filled(rounded, drawn), ids)
    match spec.shape:
        case "encoder":
            expected = llamacpp.hidden(path, ids)
        case "decoder":
            expected = llamacpp.logits(path, ids)
        case _:
            expected = llamacpp.logits(path, ids, source=ids[::-1]) * (getattr(spec.head, "scale", None) or 1)
    mixers = [part.mixer for part in spec.output.pattern[0].branches]
    tabled = any(str(getattr(mixer, "activation", "")).startswith("gelu") for mixer in mixers)
    assert (found - expected).abs().max() < (2e-3 if tabled else 1e-5) * expected.abs().max()


@pytest.mark.parametrize(
    ("name", "head", "architecture", "read_as"),
    [
        ("distilbert", "DistilBertModel", "bert", "bert"),
        ("roberta", "RobertaModel", "bert", "bert"),
        ("t5", "T5EncoderModel", "t5encoder", "t5"),
    ],
)
def test_encoders_of_another_name(name: str, head: str, architecture: str, read_as: str, tmp_path: Path) -> None:
    """BERT's descendants are written as BERT (RoBERTa's positions from nought on), T5's encoder alone as one: what is
    read computes the same here and in llama.cpp."""
    spec = families.named(name)("tiny", architectures=[head])
    drawn = numbers(spec)
    path = write(tmp_path / "x.gguf", spec, drawn, name)
    assert GgufFile(path).metadata["general.architecture"] == architecture
    copy, ids = model.load(path, device="cpu"), [5, 3, 99, 40, 7]
    assert copy.family == read_as
    found = run(filled(spec, drawn), ids)
    assert torch.equal(run(copy, ids), found)
    expected = llamacpp.hidden(path, ids)
    assert (found - expected).abs().max() < 2e-3 * expected.abs().max()


REFUSED = [
    ("llama", {"hidden_act": "relu"}, r"no counterpart for .*activation \('relu', not 'silu'\)"),
    ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "head"),
    ("qwen3", {"attention_bias": True}, r"mixer\.bias"),
    ("qwen3", {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 16, "long_factor": [2.0] * 16,
                                "factor": 2.0}}, "qwen3 files have no rotary scaling of the kind longrope"),
    ("qwen3_moe", {"norm_topk_prob": False}, "expert_weights_norm is false; only true is understood"),
    ("gemma2", {"final_logit_softcapping": None}, "soft_cap"),
    ("gemma3", {"query_pre_attn_scalar": 64}, "scale"),
    ("mpt", {"attn_config": {"softmax_scale": 0.5}}, "scale"),
    ("olmo2", {"tie_word_embeddings": True}, "tied"),
    ("gpt_oss", {"tie_word_embeddings": True}, "tied"),
    ("gpt_oss", {"swiglu_limit": 5.0}, "limit"),
    ("gpt_oss", {"layer_types": ["full_attention"] * 2}, "attention.sliding_window is missing"),
    ("gpt_oss", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": True}}, "truncate"),
    ("deepseek_v3", {"rope_interleave": False}, "interleaved"),
    ("deepseek_v3", {"attention_bias": True}, "no tensor for decoder.layers.0.attention.*bias"),
    ("deepseek_v3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn_log_multiplier is missing"),
    ("t5", {"relative_attention_max_distance": 64}, "max_distance"),
    ("bert", {"architectures": ["BertForMaskedLM"]}, r'head; "architectures": \["BertModel"\] in its config.json'),
    ("roberta", {"architectures": ["RobertaForMaskedLM"]}, r'\["RobertaModel"\]'),
    ("bart", {}, "no GGUF architecture"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "attributes", "message"), REFUSED)
def test_what_gguf_has_no_words_for_is_refused(
    name: str, attributes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """One sentence names the part of the spec, and nothing is written."""
    spec = families.named(name)("tiny", **attributes)
    with pytest.raises(SpecError, match=message) as error:
        write(tmp_path / "x.gguf", spec, numbers(spec), name)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_other_refusals(tmp_path: Path) -> None:
    """A type that GGUF has no matrices in, another model's tensors, a directory of that name, a disk that refuses."""
    spec = families.named("llama")("tiny")
    drawn = numbers(spec)
    with pytest.raises(CheckpointError, match="holds float32, float16, bfloat16, not float64"):
        write(tmp_path / "x.gguf", spec, drawn, "llama", dtype=torch.float64)
    with pytest.raises(CheckpointError, match="parameters are not those of its spec"):
        write(tmp_path / "x.gguf", spec, {**drawn, "other": torch.ones(1)}, "llama")
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(CheckpointError, match=r"x\.gguf is a directory"):
        write(tmp_path / "x.gguf", spec, drawn, "llama")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/x\.gguf cannot be written"):
        write(tmp_path / "file" / "x.gguf", spec, drawn, "llama")


class Broken(dict[str, Tensor]):
    """Tensors of which one cannot be read when its turn comes."""

    def __getitem__(self, name: str) -> Tensor:
        tensor = super().__getitem__(name)
        if "down" in name and self.reads > 2:
            raise CheckpointError("the disk is gone")
        self.reads += "down" in name
        return tensor

    reads = 0


def test_nothing_is_left_half_written(tmp_path: Path) -> None:
    """Where writing stops in the middle, the file that was there stays as it was, and no other is left."""
    spec = families.named("llama")("tiny")
    path = write(tmp_path / "x.gguf", spec, numbers(spec), "llama")
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="the disk is gone"):
        write(path, spec, Broken(numbers(spec, 1)), "llama")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("pooling", "number"), [("mean", 1), ("first", 2), ("last", 3)])
def test_pooling(pooling: Any, number: int, tmp_path: Path) -> None:
    """How embeddings are pooled is in the file; what it cannot say is refused."""
    for name, attributes in (("bert", {"architectures": ["BertModel"]}), ("qwen3", {"architectures": ["Qwen3Model"]})):
        spec = families.named(name)("tiny", **attributes).replace(head=EmbeddingHead(pooling=pooling))
        path = write(tmp_path / "x.gguf", spec, numbers(spec), name)
        assert GgufFile(path).metadata[f"{name}.pooling_type"] == number
        assert checkpoints.open(path).spec.head == spec.head
        for unsaid in (EmbeddingHead(pooling="max"), EmbeddingHead(normalize=False)):
            with pytest.raises(SpecError, match="no counterpart for head"):
                write(path, spec.replace(head=unsaid), numbers(spec), name)


CHANGED = [
    ("gemma3", {"attention.sliding_window_pattern": [True, False]}, "for each of 3 layers"),
    ("gemma3", {"attention.sliding_window_pattern": -1}, "must be a number, or true or false"),
    ("gemma3", {"attention.key_length_swa": 16}, "no such attribute is known: 'gemma3.attention.key_length_swa'"),
    ("gemma2", {"rope.freq_base_swa": 500.0}, r"gemma2.rope.freq_base_swa is 500.0; only 10000.0 is understood"),
    ("bert", {"pooling_type": 4}, "bert.pooling_type is 4; known are 0 and 1, 2, 3"),
    ("bert", {"attention.causal": True}, "bert.attention.causal is true; only false is understood"),
    ("t5", {"decoder_block_count": 10**9}, "decoder_block_count is 1000000000, but there are only"),
    ("llama", {"block_count": 10**9}, "block_count is 1000000000, but there are only 20 tensors"),
    ("llama", {"block_count": "2"}, 'llama.block_count is "2"; it must be a whole number above 0'),
    ("llama", {"rope.scaling.type": "longrope"}, "rope.scaling.type is 'longrope', of which the file does not say"),
    ("llama", {"rope.scaling.yarn_log_multiplier": 0.1}, r"yarn_log_multiplier is 0.1; only 0.0 is understood"),
    ("llama", {"expert_count": 4, "expert_used_count": 2}, "lacks blk.0.ffn_gate_inp.weight"),
    ("mpt", {"attention.clamp_kqv": 6.0}, "mpt.attention.clamp_kqv is 6.0; only 0.0 is understood"),
    ("mpt", {"attention.max_alibi_bias": 4.0}, "mpt.attention.max_alibi_bias is 4.0; only 8.0 is understood"),
    ("bloom", {"feed_forward_length": 99}, "bloom.feed_forward_length is 99; only 256 is understood"),
    ("qwen3_moe", {"expert_shared_count": 1}, "qwen3moe.expert_shared_count is 1; only 0 is understood"),
    ("qwen3_moe", {"expert_weights_scale": 2.5}, "qwen3moe.expert_weights_scale is 2.5; only 1.0 is understood"),
    ("gpt_oss", {"attention.sliding_window": 0}, "gpt-oss.attention.sliding_window is 0; it must be"),
    ("deepseek_v3", {"expert_gating_func": 1}, "deepseek2.expert_gating_func is 1; only 2 is understood"),
    ("deepseek_v3", {"attention.head_count_kv": 4}, "deepseek2.attention.head_count_kv is 4; only 1 is understood"),
    ("deepseek_v3", {"attention.key_length_mla": 8}, "must be more than the 8 channels that turn"),
    ("deepseek_v3", {"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier is 0.1; only 0.0 is understood"),
    ("gpt_neox", {"rope.dimension_count": 40}, "rotary positions turn 40 of head_dim=16 channels"),
]


@pytest.mark.parametrize(("name", "changed", "message"), CHANGED)
def test_metadata_of_another_model(name: str, changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A key that would change what the model computes, and that its family has no words for, is refused by name."""
    family = families.named(name)
    spec = family("tiny", architectures=[head_of(family)])
    path = write(tmp_path / "x.gguf", spec, numbers(spec), name)
    reader = GgufFile(path)
    assert family.gguf is not None
    writer = gguf.GGUFWriter(tmp_path / "y.gguf", family.gguf.architecture)
    changed = {f"{family.gguf.architecture}.{key}": value for key, value in changed.items()}
    for key, value in {**reader.metadata, **changed}.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    for each in reader.tensors:
        writer.add_tensor(each, reader.read(each).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(AnyformerError, match=message) as error:
        checkpoints.open(tmp_path / "y.gguf")
    assert str(tmp_path / "y.gguf") in str(error.value)


@pytest.mark.parametrize("key", ["expert_gating_func", "attention.key_length_mla", "attention.kv_lora_rank"])
def test_silence_that_means_another_model(key: str) -> None:
    """DeepSeek-V2's files have the architecture of V3's, and old ones keep whole keys; both are told by what they leave
    unsaid, and refused."""
    spec = families.named("deepseek_v3")("tiny")
    metadata = dict(expressed(spec, "deepseek_v3")[1].metadata)
    del metadata[f"deepseek2.{key}"]
    with pytest.raises(SpecError, match=rf"x.gguf: deepseek2.{key} is (missing|1; only 2 is understood)"):
        read(
            metadata, dict.fromkeys(map(str, range(9)), ()) | {"token_embd.weight": (512, 64)}, {}.__getitem__, "x.gguf"
        )


#: What damage or another writer may put under a key.
VALUES = st.one_of(
    st.integers(-2, 2**40), st.floats(), st.booleans(), st.text(max_size=5), st.lists(st.booleans(), max_size=4)
)


@settings(max_examples=30)
@given(data=st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_damaged_metadata_give_errors_and_nothing_else(name: str, data: st.DataObject) -> None:
    """Any value under any key, one missing, odd divisors of rotary frequencies: a spec, or an error of ours."""
    spec = odd_gguf_spec(name, 1)
    written = expressed(spec, name)[1]
    metadata, own = dict(written.metadata), f"{written.metadata['general.architecture']}."
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(
            st.sampled_from([*(each for each in metadata if each.startswith(own)), *(own + k for k in FACTS)])
        )
        metadata[key] = data.draw(VALUES)
    metadata.pop(data.draw(st.sampled_from(sorted(metadata))), None) if data.draw(st.booleans()) else None
    shapes = dict.fromkeys(written.tensors, (1,)) | {"token_embd.weight": (67, 30)}
    shapes |= {f"blk.{index}.attn_q.weight": (3, 3) for index in range(8)}
    numbers = {each: data.draw(st.lists(st.floats(), min_size=1, max_size=4)) for each in written.tensors}
    with suppress(AnyformerError):
        read(metadata, shapes, numbers.__getitem__, "x.gguf")


def test_every_key_is_written_somewhere() -> None:
    """No line of the table is idle: for each key there is a family whose odd models say something by it."""
    said = set()
    for name in FAMILIES:
        for seed in (1, 2, 3):
            spec = odd_gguf_spec(name, seed)
            said |= {key for key, fact in FACTS.items() if fact.of(spec) not in (None, fact.absent)}
    assert FACTS.keys() - said <= {"expert_shared_count", "rope.scaling.yarn_beta_slow"}
