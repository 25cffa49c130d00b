"""Tokenizers as vocabularies of GGUF files: read again, or by llama.cpp, they give the same ids; others are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llamacpp
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from anyformer import text
from anyformer.checkpoints.gguf import GgufFile
from anyformer.errors import TextError
from anyformer.text import Tokenizer
from anyformer.text.gguf_writing import PROBES, to_gguf

WORDS = "the low lower lowest, newer wider naïve 你好 def f(x): return 12345 🙂 Hello World it's "


def byte_level(**config: Any) -> Tokenizer:
    """A byte-level BPE of Llama 3's splits, with special tokens and a chat template."""
    backend = text.train_bpe([WORDS * 40], 330)._backend
    backend.add_special_tokens(["<s>", "</s>"])
    backend.add_tokens([AddedToken("<tool>", normalized=False)])
    begin = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return Tokenizer(backend, {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages }}", **config})


def sentencepiece_bpe() -> Tokenizer:
    """BPE that falls back to bytes, as Llama 2's tokenizer.json writes it."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pairs = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "l"), ("o", "w"), ("▁l", "ow"), ("e", "r"), ("▁low", "er")]
    letters = sorted({character for pair in pairs for part in pair for character in part} | set("abdfgimnprsuvwxyz"))
    vocabulary = {piece: id for id, piece in enumerate([*pieces, *(a + b for a, b in pairs), *letters])}
    backend = Backend(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return Tokenizer(backend, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"})


def unigram() -> Tokenizer:
    """A unigram vocabulary with T5's ids, which begins texts with a space, squeezes spaces and ends with </s>."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -3.0), ("▁low", -3.5), ("er", -4.0)]
    pieces += [(letter, -6.0 - id / 100) for id, letter in enumerate("abcdefghijklmnopqrstuvwxyz.,'")]
    types = [gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.UNKNOWN] + [gguf.TokenType.NORMAL] * (len(pieces) - 3)
    tokens, scores = [token for token, _ in pieces], [score for _, score in pieces]
    said = {"model": "t5", "tokens": tokens, "scores": scores, "token_type": [int(type) for type in types]}
    ids = {"padding_token_id": 0, "eos_token_id": 1, "unknown_token_id": 2}
    return text.from_gguf({f"tokenizer.ggml.{key}": value for key, value in {**said, **ids}.items()})


MADE = {"gpt2": byte_level, "llama": sentencepiece_bpe, "t5": unigram}


def again(metadata: dict[str, Any]) -> Tokenizer:
    return text.from_gguf({key: list(value) if isinstance(value, bytes) else value for key, value in metadata.items()})


def write(path: Path, metadata: dict[str, Any]) -> Path:
    """A GGUF file that holds a vocabulary and no more."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in metadata.items():
        if isinstance(value, int) and not isinstance(value, bool):
            writer.add_uint32(key, value)
        elif isinstance(value, list | bytes):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", MADE)
def test_each_kind_is_read_again(kind: str) -> None:
    """The same ids for every text, special tokens and template kept, and rows without a token named as such."""
    tokenizer = MADE[kind]()
    size = tokenizer.vocabulary_size + 5
    metadata = to_gguf(tokenizer, size)
    assert metadata["tokenizer.ggml.model"] == kind
    assert len(metadata["tokenizer.ggml.tokens"]) == len(metadata["tokenizer.ggml.token_type"]) == size
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{size - 1}]"
    copy = again(metadata)
    assert (copy.bos, copy.eos, copy.pad, copy.chat_template) == (
        tokenizer.bos,
        tokenizer.eos,
        tokenizer.pad,
        tokenizer.chat_template,
    )
    for each in (*PROBES, WORDS, "the lower </s> the <tool> end"):
        for special in (True, False):
            assert copy.encode(each, special) == tokenizer.encode(each, special)


def test_real_vocabularies(smollm2: Path, minilm: Path, hard_texts: list[str]) -> None:
    """SmolLM2's byte-level BPE and MiniLM's WordPiece, written and read again, read hard texts as before."""
    for tokenizer in (text.from_gguf(GgufFile(smollm2).metadata), text.load(minilm)):
        assert tokenizer is not None
        copy = again(to_gguf(tokenizer, tokenizer.vocabulary_size))
        assert copy.encode_batch(hard_texts) == tokenizer.encode_batch(hard_texts)


@pytest.mark.parametrize("kind", [*MADE, "bert"])
def test_llama_cpp_reads_the_same_ids(kind: str, minilm: Path, tmp_path: Path) -> None:
    """llama.cpp's own tokenizer, from the file, against the tokenizer that was written."""
    tokenizer = MADE[kind]() if kind in MADE else text.load(minilm)
    assert tokenizer is not None
    size = tokenizer.vocabulary_size
    path = write(tmp_path / "vocabulary.gguf", to_gguf(tokenizer, size + 3))
    # What it has no piece for it counts byte by byte in a unigram vocabulary.
    plain = ("the lower low, er", "it's the  lower")
    texts = plain if kind == "t5" else (WORDS, *PROBES[2:4], "naïve café 12,345", f"a [PAD{size}]")
    for each in texts:
        assert llamacpp.tokens(path, each) == tokenizer.encode(each), each


def metaspace_bpe() -> Tokenizer:
    backend = Backend(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return Tokenizer(backend)


def with_backend(change: Callable[[Backend], None]) -> Tokenizer:
    tokenizer = byte_level()
    change(tokenizer._backend)
    return tokenizer


def lowercased(backend: Backend) -> None:
    backend.normalizer = normalizers.Lowercase()


def split_otherwise(backend: Backend) -> None:
    split = pre_tokenizers.Split(Regex(r"[a-z]+|."), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def spaced(backend: Backend) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)


def ended_by_another(backend: Backend) -> None:
    tool = backend.token_to_id("<tool>")
    backend.post_processor = processors.TemplateProcessing(single="$A <tool>", special_tokens=[("<tool>", tool)])


REFUSED = [
    (metaspace_bpe, "it is a BPE of a kind that they do not have"),
    (text.byte_level, "it is byte-level and merges nothing"),
    (lambda: with_backend(lowercased), r"it normalises text \(Lowercase\)"),
    (lambda: with_backend(split_otherwise), "the way it splits text into words has no name there"),
    (lambda: with_backend(spaced), r"it splits text by a step that they do not have \(ByteLevel\)"),
    (lambda: with_backend(ended_by_another), "read from such a file, it would split '' otherwise"),
]


@pytest.mark.parametrize(("make", "message"), REFUSED)
def test_what_no_file_can_hold_is_refused(make: Callable[[], Tokenizer], message: str) -> None:
    """One sentence says what it is that a GGUF file cannot say of the tokenizer."""
    with pytest.raises(TextError, match=f"no GGUF file can hold this tokenizer: {message}") as error:
        to_gguf(make(), 1000)
    assert "\n" not in str(error.value)


def test_a_vocabulary_beyond_the_embedding_table() -> None:
    """More tokens than rows cannot belong to one model."""
    with pytest.raises(TextError, match="it has the id 320, and the model's embedding table 100 rows"):
        to_gguf(byte_level(), 100)
