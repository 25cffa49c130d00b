"""Vocabularies in tiktoken's format: tiktoken's own ids, the special tokens of their models, errors by line."""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from vocabularies import byte_level_bpe, writing

from anyformer import text
from anyformer.errors import TextError
from anyformer.text import Tokenizer
from anyformer.text.bytelevel import byte_alphabet
from anyformer.text.splits import find_split


@lru_cache
def ranks() -> dict[bytes, int]:
    """The bytes of a trained vocabulary's tokens."""
    byte_of = {letter: byte for byte, letter in byte_alphabet().items()}
    tokens, _ = byte_level_bpe()
    return {bytes(byte_of[letter] for letter in token): rank for rank, token in enumerate(tokens)}


def written() -> bytes:
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks().items())


def directory(path: Path, name: str = "tokenizer.model", content: bytes | None = None, **files: object) -> Path:
    (path / name).write_bytes(written() if content is None else content)
    for stem, data in files.items():
        (path / f"{stem}.json").write_text(json.dumps(data))
    return path


@pytest.fixture(scope="module", params=["tokenizer.model", "qwen.tiktoken"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tiktoken.Encoding]:
    """Ours out of a file, and tiktoken's of the same ranks, pattern and special tokens."""
    ours = text.read(directory(tmp_path_factory.mktemp("tiktoken"), request.param))
    split = {"tokenizer.model": "llama-bpe", "qwen.tiktoken": "qwen2"}[request.param]
    special = {token.content: id for id, token in ours._backend.get_added_tokens_decoder().items()}
    (pattern,) = find_split(split).patterns
    theirs = tiktoken.Encoding(split, pat_str=pattern, mergeable_ranks=ranks(), special_tokens=special)
    return ours, theirs


@given(each=writing)
@settings(max_examples=300)
def test_encoding_and_decoding_are_tiktokens(pair: tuple[Tokenizer, tiktoken.Encoding], each: str) -> None:
    """Merges out of ranks give tiktoken's ids for any text; Qwen's way composes accents first."""
    ours, theirs = pair
    composed = ours._backend.normalizer.normalize_str(each) if ours._backend.normalizer else each
    ids = theirs.encode(composed, allowed_special="all")
    assert ours.encode(each, special=False) == ids
    assert ours.decode(ids) == theirs.decode(ids)


def test_llama_3_has_256_special_tokens(tmp_path: Path) -> None:
    """With nothing but the file: where turns and headers stand, and that the text begins with the first of them."""
    ours, size = text.read(directory(tmp_path)), len(ranks())
    assert ours.vocabulary_size == size + 256
    names = {"<|begin_of_text|>": 0, "<|end_of_text|>": 1, "<|start_header_id|>": 6, "<|end_header_id|>": 7}
    names |= {"<|eom_id|>": 8, "<|eot_id|>": 9, "<|python_tag|>": 10, "<|reserved_special_token_247|>": 255}
    for token, place in names.items():
        assert ours.encode(f"{token}", special=False) == [size + place]
    assert ours.encode("the")[0] == ours.bos == size
    assert ours.eos == size + 1


def test_qwen_has_its_own(tmp_path: Path) -> None:
    """The end of text, the marks of turns, and 205 spare ones; nothing begins a text."""
    ours, size = text.read(directory(tmp_path, "qwen.tiktoken")), len(ranks())
    assert ours.vocabulary_size == size + 208
    assert ours.encode("<|endoftext|><|im_start|><|im_end|><|extra_0|>") == list(range(size, size + 4))
    assert (ours.bos, ours.eos, ours.pad) == (None, size, size)


def test_a_configuration_names_the_special_tokens(tmp_path: Path) -> None:
    """What tokenizer_config.json lists stands in the place of the model's own, and survives a save."""
    size = len(ranks())
    tokens = {str(size + at): {"content": token, "special": True} for at, token in enumerate(("<a>", "<b>"))}
    config = {"added_tokens_decoder": tokens, "bos_token": "<a>", "eos_token": "<b>", "add_eos_token": True}
    ours = text.read(directory(tmp_path, tokenizer_config=config, config={"model_type": "llama"}))
    assert ours.encode("<|eot_id|>the") == [size, *ours.encode("<|eot_id|>the", special=False), size + 1]
    assert ours.vocabulary_size == size + 2
    ours.save(tmp_path / "saved")
    assert text.read(tmp_path / "saved").encode("a the") == ours.encode("a the")


def test_roles_of_the_model_hold_for_tokens_that_a_configuration_lists(tmp_path: Path) -> None:
    """The end of text that is listed ends texts though nothing says so; the beginning, which is not, begins none."""
    size = len(ranks())
    ours = text.read(directory(tmp_path, added_tokens={"<|end_of_text|>": size}))
    assert (ours.bos, ours.eos, ours.vocabulary_size) == (None, size, size + 1)
    assert ours.encode("the") == ours.encode("the", special=False)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.model", b"IQ== 0\nIg= 1\n", r"tokenizer\.model, line 2: "),
        (
            "tokenizer.model",
            b"IQ== 0\nIg== one\n",
            r"tokenizer\.model, line 2: it is not a token in base64 and its rank",
        ),
        ("tokenizer.model", b"IQ== 0\nIg== 0\n", r"tokenizer\.model, line 2: rank 0 stands there a second time"),
        ("tokenizer.model", b"IQ== 0\nIQ== 1\n", r"tokenizer\.model, line 2: its token stands there a second time"),
        ("tokenizer.model", b"IQ== 0\nIg== 2\n", r"tokenizer\.model has 2 tokens, but none of rank 1"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", r"tokenizer\.model has no token for the byte 0x23"),
        ("qwen.tiktoken", b"\xff\n", r"qwen\.tiktoken, line 1: it is not a token"),
        ("qwen.tiktoken", b"", r"qwen\.tiktoken has no token for the byte 0x21"),
        ("tiktoken.model", b"IQ== 0\n", r"tiktoken\.model does not say how it splits words"),
    ],
)
def test_broken_files_are_named_with_the_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """One sentence that names the file, and the line in it."""
    with pytest.raises(TextError, match=message) as error:
        text.load(directory(tmp_path, name, content))
    assert "\n" not in str(error.value)


def test_other_models_of_that_name_are_refused(tmp_path: Path) -> None:
    """The format does not say how words are split, so a class that is not known is not guessed at."""
    config = {"tokenizer_class": "ChatGLM4Tokenizer"}
    with pytest.raises(TextError, match=r"tokenizer\.model belongs to a ChatGLM4Tokenizer"):
        text.load(directory(tmp_path, tokenizer_config=config))
