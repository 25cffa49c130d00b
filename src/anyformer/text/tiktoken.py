"""Vocabularies in tiktoken's format: on each line a token's bytes in base64 and its rank, which is its id.

    SGVsbG8= 9906

There are no merges in it: two tokens merge as early as the token that they make ranks. And the file says neither how
words are split nor which special tokens come after its own; that is known here for Llama 3 and Qwen.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import NamedTuple

from anyformer.errors import TextError
from anyformer.text.building import around, merges_of
from anyformer.text.bytelevel import END_OF_TEXT, byte_alphabet, byte_level_bpe
from anyformer.text.folder import Folder
from anyformer.text.splits import find_split
from anyformer.text.tokenizer import Tokenizer

_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?(\n|$)")


class _Style(NamedTuple):
    """How words are split, the special tokens by role, and all of them in the order of their ids."""

    split: str
    roles: Mapping[str, str]
    special: tuple[str, ...]


def _reserved(begin: int, end: int) -> list[str]:
    return [f"<|reserved_special_token_{number}|>" for number in range(begin, end)]


#: The 256 after Llama 3's vocabulary, by the names of Llama 3.1; Llama 3 never uses what is named anew there.
_LLAMA3 = (
    *("<|begin_of_text|>", "<|end_of_text|>", *_reserved(0, 2), "<|finetune_right_pad_id|>", *_reserved(2, 3)),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *_reserved(3, 248)),
)
_QWEN = (END_OF_TEXT, "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_STYLES = {
    "llama": _Style("llama-bpe", {"bos_token": _LLAMA3[0], "eos_token": _LLAMA3[1]}, _LLAMA3),
    "qwen": _Style("qwen2", {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}, _QWEN),
}
_BY_NAME = {"qwen.tiktoken": "qwen", "tokenizer.model": "llama"}


def is_tiktoken(data: bytes) -> bool:
    """Whether a file begins as one in tiktoken's format does."""
    return _LINE.match(data) is not None


def read(folder: Folder, name: str) -> Tokenizer:
    """The tokenizer of a directory whose file `name` is in tiktoken's format. Its special tokens are those that
    tokenizer_config.json or added_tokens.json list, else the model family's own."""
    where = folder.path / name
    if name not in _BY_NAME:
        raise TextError(
            f"{where} does not say how it splits words, and no model is known here that has it by that name"
        )
    style = folder.style(name, _STYLES, _BY_NAME[name])
    tokens = _tokens(folder.files[name], str(where))
    vocabulary = {token: rank for rank, token in enumerate(tokens)}
    # A word that is a token is that token here, however it would merge.
    split = find_split(style.split)._replace(whole_words=True)
    backend = byte_level_bpe(vocabulary, merges_of(tokens, vocabulary), split)
    if not folder.config.get("added_tokens_decoder") and "added_tokens.json" not in folder.files:
        backend.add_special_tokens(list(style.special))
    roles = folder.roles(style.roles, backend.get_vocab())
    tokenizer = folder.tokenizer(backend, name, roles)
    backend.post_processor = around(backend.get_vocab(), *folder.ends(roles, begins=split.begins))
    return tokenizer


def _tokens(data: bytes, where: str) -> list[str]:
    """The tokens by rank, in the alphabet of bytes."""
    alphabet = byte_alphabet()
    ranks: dict[int, str] = {}
    known: set[str] = set()
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            if _LINE.fullmatch(line) is None:
                raise ValueError("it is not a token in base64 and its rank")
            encoded, rank = line.split(b" ")
            token = "".join(alphabet[byte] for byte in base64.b64decode(encoded, validate=True))
            if ranks.setdefault(int(rank), token) is not token:
                raise ValueError(f"rank {int(rank)} stands there a second time")
            if token in known:
                raise ValueError("its token stands there a second time")
            known.add(token)
        except (ValueError, binascii.Error) as error:
            raise TextError(f"{where}, line {number}: {error}") from None
    for rank in range(len(ranks)):
        if rank not in ranks:
            raise TextError(f"{where} has {len(ranks)} tokens, but none of rank {rank}; it is cut off or damaged")
    for byte, letter in alphabet.items():
        if letter not in known:
            raise TextError(f"{where} has no token for the byte 0x{byte:02X}; it is cut off or damaged")
    return [ranks[rank] for rank in range(len(ranks))]
