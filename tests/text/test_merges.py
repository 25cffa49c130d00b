"""vocab.json and merges.txt: transformers' ids from the same directory, whatever stands beside them; errors by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from vocabularies import byte_level_bpe

from anyformer import text
from anyformer.errors import TextError

FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")
MASK = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
END = {"content": "<|endoftext|>", "special": True, "normalized": False}
START = {"content": "<|im_start|>", "special": True, "normalized": False}
QWEN2 = {
    "tokenizer_class": "Qwen2Tokenizer",
    "added_tokens_decoder": {"1199": END, "1200": START},
    "additional_special_tokens": ["<|im_start|>"],
    "eos_token": "<|im_start|>",
    "pad_token": "<|endoftext|>",
    "bos_token": None,
    "unk_token": None,
}
OPT = {
    "tokenizer_class": "GPT2Tokenizer",
    "add_bos_token": True,
    "add_eos_token": True,
    **dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>"),
    "pad_token": "<pad>",
}
#: Tokens before and after the trained ones, and the files beside.
STYLES: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]] = {
    "gpt2": ((), ("<|endoftext|>",), {"config": {"model_type": "gpt2"}}),
    "gpt2, spaced": (
        (),
        ("<|endoftext|>",),
        {
            "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True},
            "special_tokens_map": {"pad_token": "<pad>", "mask_token": MASK},
        },
    ),
    "opt": ((), ("</s>",), {"tokenizer_config": OPT, "added_tokens": {"<new>": 1200}}),
    "roberta": (
        FAIRSEQ,
        ("<mask>",),
        {
            "config": {"model_type": "roberta"},
            "special_tokens_map": {"mask_token": MASK, "additional_special_tokens": ["<X>"]},
        },
    ),
    "bart, spaced": (
        FAIRSEQ,
        ("<mask>",),
        {"tokenizer_config": {"tokenizer_class": "BartTokenizer", "add_prefix_space": True}},
    ),
    "qwen2": ((), (), {"tokenizer_config": QWEN2}),
}


def directory(path: Path, before: tuple[str, ...] = (), after: tuple[str, ...] = (), **files: object) -> Path:
    tokens, merges = byte_level_bpe()
    vocabulary = {token: id for id, token in enumerate([*before, *tokens, *after])}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", STYLES)
def test_directories_encode_as_in_transformers(name: str, tmp_path: Path, hard_texts: list[str]) -> None:
    """Ids, texts, special tokens by role and the size, with a space first and without; and what is saved gives the
    same again, here and there."""
    before, after, files = STYLES[name]
    directory(tmp_path, before, after, **files)
    ours, theirs = text.read(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    ours.save(tmp_path / "saved")
    again = text.read(tmp_path / "saved")
    special = ["Hello <mask> x", "a<mask>b <s> c</s>", "<pad> x <|endoftext|>y<|im_start|>", "<new> <X>z"]
    for each in [*hard_texts, *special]:
        ids = theirs.encode(each)
        assert ours.encode(each) == again.encode(each) == ids
        assert ours.encode(each, special=False) == theirs.encode(each, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocabulary_size == len(theirs)


@pytest.mark.parametrize("more", [["<X>"], {"x_token": "<X>"}])
def test_special_tokens_without_a_role_are_special(more: object, tmp_path: Path) -> None:
    """Newer files list them, or name them; they are recognised, and left out of what is decoded."""
    config = {"tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": more}
    ours = text.read(directory(tmp_path, after=("<|endoftext|>",), tokenizer_config=config))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert ours.encode("a<X>b") == theirs.encode("a<X>b")
    assert ours.decode(ours.encode("a<X>b")) == "ab"


def test_pairs_stand_as_in_transformers(tmp_path: Path) -> None:
    """Where a text stands between two tokens, two texts do as RoBERTa has them, all of one token type."""
    ours = text.read(directory(tmp_path, FAIRSEQ, ("<mask>",), config={"model_type": "roberta"}))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    pair = ours._backend.encode("one", "two")
    assert pair.ids == theirs.encode("one", "two")
    assert set(pair.type_ids) == {0}


def test_two_bare_files_are_told_apart_by_their_tokens(tmp_path: Path) -> None:
    """Without any configuration, fairseq's tokens make RoBERTa's tokenizer; else it is GPT-2's."""
    (tmp_path / "roberta").mkdir()
    (tmp_path / "gpt2").mkdir()
    roberta = text.read(directory(tmp_path / "roberta", FAIRSEQ, ("<mask>",)))
    gpt2 = text.read(directory(tmp_path / "gpt2", after=("<|endoftext|>",)))
    assert (roberta.encode("")[0], roberta.encode("")[-1], roberta.pad) == (0, 2, 1)
    assert gpt2.encode("") == []
    assert gpt2.bos == gpt2.eos == len(byte_level_bpe()[0])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("merges.txt", None, r"vocab\.json needs merges\.txt beside it"),
        ("vocab.json", None, r"merges\.txt needs vocab\.json beside it"),
        ("merges.txt", b"#version: 0.2\ni n\nab\n", r"merges\.txt, line 3: it is no pair of tokens"),
        ("merges.txt", b"i n\r\n\r\nq\xc5\x93 n\n", r"merges\.txt, line 3: 'qœ' is not in vocab\.json"),
        ("merges.txt", b"i n\n\xff", r"merges\.txt is not UTF-8 at byte 4"),
        ("vocab.json", b"{", r"vocab\.json is not JSON"),
        ("vocab.json", b'["a"]', r"vocab\.json is not a JSON object"),
        ("vocab.json", b'{"a": "1"}', r"vocab\.json gives 'a' the id '1'; ids are whole numbers"),
        ("vocab.json", b'{"a": -1}', r"vocab\.json gives 'a' the id -1"),
        ("vocab.json", b'{"a": true}', r"vocab\.json gives 'a' the id True"),
        ("vocab.json", b'{"a": 1, "b": 1}', r"vocab\.json gives 'a' and 'b' the same id, 1"),
        ("tokenizer_config.json", b'{"tokenizer_class": "CLIPTokenizer"}', r"vocab\.json belongs to a CLIPTokenizer"),
        ("config.json", b'{"model_type": "whisper"}', r"vocab\.json belongs to a whisper"),
        ("tokenizer_config.json", b'{"additional_special_tokens": "<a>"}', r"are '<a>', which is no list of tokens"),
        ("config.json", b"[", r"config\.json is not JSON"),
    ],
)
def test_broken_files_are_named_with_the_line(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    """One sentence that names the file, and the line or byte in it."""
    directory(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message) as error:
        text.load(tmp_path)
    assert "\n" not in str(error.value)
