"""Byte-level vocabularies: bytes in a printable alphabet, so that no text is unknown to them."""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from anyformer.text.splits import Split

#: Ends a text, and stands between texts in training.
END_OF_TEXT = "<|endoftext|>"


def byte_alphabet() -> dict[int, str]:
    """The printable character that byte-level BPE writes for each byte (Radford et al. 2019, GPT-2): itself where it
    prints, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + at) for at, byte in enumerate(others)}


def words(*patterns: str, space_first: bool = False) -> pre_tokenizers.PreTokenizer:
    """What splits a text at each pattern in turn, then writes its bytes in their alphabet; with `space_first`, a text
    that begins with no space gets one."""
    space = [pre_tokenizers.Metaspace(" ", prepend_scheme="always", split=False)] if space_first else []
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*space, *splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level_bpe(
    vocabulary: Mapping[str, int], merges: list[tuple[str, str]], split: Split, space_first: bool = False
) -> Backend:
    """BPE on the bytes of words, split and composed as `split` says; with `space_first`, a text begins with a space."""
    backend = Backend(models.BPE(dict(vocabulary), merges, ignore_merges=split.whole_words))
    if split.compose:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = words(*split.patterns, space_first=space_first)
    backend.decoder = decoders.ByteLevel()
    return backend


def plain_bytes() -> Backend:
    """A vocabulary that needs no training: id b is byte b, id 256 ends a text."""
    backend = Backend(models.BPE({character: byte for byte, character in byte_alphabet().items()}, []))
    backend.pre_tokenizer = words()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(END_OF_TEXT, special=True, normalized=False)])
    return backend
