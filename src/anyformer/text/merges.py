"""Byte-level BPE out of the two files that GPT-2 began with: vocab.json (token -> id) and merges.txt (a merge a line,
the first ones first), as GPT-2, RoBERTa, BART and Qwen have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from anyformer.errors import TextError
from anyformer.text.building import FAIRSEQ_ROLES, around
from anyformer.text.bytelevel import END_OF_TEXT, byte_level_bpe
from anyformer.text.folder import Folder
from anyformer.text.splits import find_split
from anyformer.text.tokenizer import Tokenizer

_VOCABULARY, _MERGES = "vocab.json", "merges.txt"


class _Style(NamedTuple):
    """How words are split, the special tokens where nothing names them, and whether a text stands between two."""

    split: str
    roles: Mapping[str, str]
    between: bool = False


_GPT2 = _Style("gpt-2", dict.fromkeys(("unk_token", "bos_token", "eos_token"), END_OF_TEXT))
_QWEN2 = _Style("qwen2", dict.fromkeys(("unk_token", "eos_token", "pad_token"), END_OF_TEXT))
_ROBERTA = _Style("gpt-2", FAIRSEQ_ROLES, between=True)
_STYLES = {
    **dict.fromkeys(["gpt2", "gptneo", "gptj", "opt", "codegen", "phi", "starcoder2"], _GPT2),
    **dict.fromkeys(["qwen2", "qwen2moe", "qwen3", "qwen3moe"], _QWEN2),
    **dict.fromkeys(["roberta", "bart", "longformer", "led", "mvp"], _ROBERTA),
}


def read(folder: Folder) -> Tokenizer:
    """The tokenizer of a directory with vocab.json and merges.txt."""
    for name, other in ((_VOCABULARY, _MERGES), (_MERGES, _VOCABULARY)):
        if name not in folder.files:
            raise TextError(f"{folder.path / other} needs {name} beside it; a byte-level BPE is both files")
    vocabulary = folder.ids(_VOCABULARY)
    style = folder.style(_VOCABULARY, _STYLES, "roberta" if {"<s>", "</s>"} <= vocabulary.keys() else "gpt2")
    roles = folder.roles(style.roles, vocabulary)
    backend = byte_level_bpe(
        vocabulary,
        _merges(folder, vocabulary),
        find_split(style.split),
        space_first=folder.flag("add_prefix_space", False),
    )
    tokenizer = folder.tokenizer(backend, _VOCABULARY, roles)
    ids = backend.get_vocab()
    if style.between:
        begin, end = roles.get("cls_token"), roles.get("sep_token")
        backend.post_processor = around(ids, begin, end, second=(end, "$B", end), kind=0)
    else:
        backend.post_processor = around(ids, *folder.ends(roles))
    return tokenizer


def _merges(folder: Folder, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    lines = folder.text(_MERGES).split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        first, space, second = line.partition(" ")
        missing = next((token for token in (first, second, first + second) if token not in vocabulary), None)
        if not space or missing is not None:
            why = f"{missing!r} is not in {_VOCABULARY}" if space else "it is no pair of tokens with a space between"
            raise TextError(f"{folder.path / _MERGES}, line {number}: {why}")
        merges.append((first, second))
    return merges
