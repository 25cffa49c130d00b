"""A tokenizer as the vocabulary of a GGUF file, for each kind that such files have; the way back of `text.gguf`.

A GGUF file holds tokens, merges or scores, and a name for how text is split: less than a tokenizer may do. So what is
written is read again, and a tokenizer that would then read text otherwise is refused.

Source: the GGUF specification of the ggml project, section "Tokenizer".
"""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from anyformer.errors import TextError
from anyformer.text.gguf import from_gguf
from anyformer.text.splits import GPT2, SPLITS
from anyformer.text.tokenizer import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
#: The score of what is never to be found in a text.
_NEVER = -10000.0
_SPACE = "▁"
_ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "sep_token": "seperator",
    "pad_token": "padding",
    "cls_token": "cls",
    "mask_token": "mask",
}

#: Texts that take the splits, normalisers and fallbacks of tokenizers apart.
PROBES = (
    "",
    " ",
    "Hello, world! It's 12,345.67 o'clock; WE'LL see about that.",
    "  two spaces,   three\t\ttabs\n\n\nlines \r\n and an end  ",
    "naïve Ångström café éte\u0301, Straße, ﬁn ½ ² ªº",
    "Привет, мир! Γειά σου. 你好，世界。こんにちは 안녕하세요 שלום مرحبا नमस्ते ไทย",
    "def f(x_1, y=None): return {'a': x_1**2, \"b\": [y, -3e-5]}  # 100% <b>&amp;</b> ~/$HOME `ls`",
    "🙂👩‍👩‍👧‍👦🇩🇪 \u200b\ufeff\x00\x7f CamelCaseWords fooBar2baz snake_case --dashes-- ... !!! ??? 1234567890",
)


def to_gguf(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """The metadata of a GGUF file for a model with an embedding table of `size` rows: rows without a token get names
    that no text holds.

    Raises `TextError` saying why, where such a file cannot hold the tokenizer.
    """
    described = json.loads(tokenizer._backend.to_str())
    kind = _kind(described)
    tokens, types = _tokens(described, size)
    metadata: dict[str, Any] = {"model": kind, "pre": "default", "tokens": tokens, "token_type": types}
    metadata |= {"gpt2": _gpt2, "llama": _llama, "t5": _t5, "bert": _bert}[kind](described, tokenizer, tokens, types)
    ids = {text: id for id, text in enumerate(tokens)}
    for role, token in tokenizer.special_tokens.items():
        if role in _ROLES and token in ids:
            metadata[f"{_ROLES[role]}_token_id"] = ids[token]
    metadata |= _around(tokenizer, metadata)
    metadata = {f"tokenizer.ggml.{name}": value for name, value in metadata.items() if value not in ([], b"")}
    if tokenizer.chat_template is not None:
        metadata["tokenizer.chat_template"] = tokenizer.chat_template
    _check(tokenizer, metadata)
    return metadata


def _refuse(reason: str) -> NoReturn:
    raise TextError(f"no GGUF file can hold this tokenizer: {reason}; leave it out to write the model alone")


def _kind(described: Mapping[str, Any]) -> str:
    model = described["model"]
    steps = {step["type"] for step in _steps(described["pre_tokenizer"])}
    if model["type"] == "BPE" and model.get("byte_fallback"):
        return "llama"
    if model["type"] == "BPE" and "ByteLevel" in steps:
        return "gpt2"
    if model["type"] in ("Unigram", "WordPiece"):
        return {"Unigram": "t5", "WordPiece": "bert"}[model["type"]]
    _refuse(f"it is a {model['type']} of a kind that they do not have (byte-level, or falling back to bytes)")


def _steps(part: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """The parts of a normaliser or pre-tokenizer, one after the other."""
    for key in ("pretokenizers", "normalizers"):
        if part is not None and key in part:
            for each in part[key]:
                yield from _steps(each)
            return
    if part is not None:
        yield part


def _tokens(described: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """The text and the type of each id."""
    model = described["model"]
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):
        vocabulary = {token: id for id, (token, _) in enumerate(vocabulary)}
    found = {id: (token, _NORMAL) for token, id in vocabulary.items()}
    if model["type"] == "BPE" and model.get("byte_fallback"):
        bytes_ = {f"<0x{byte:02X}>" for byte in range(256)}
        found |= {id: (token, _BYTE) for id, (token, _) in found.items() if token in bytes_}
    for added in described["added_tokens"]:
        found[added["id"]] = (added["content"], _CONTROL if added["special"] else _USER_DEFINED)
    unknown = model.get("unk_id", vocabulary.get(model.get("unk_token")))
    if model["type"] != "WordPiece" and unknown is not None:
        found[unknown] = (found[unknown][0], _UNKNOWN)
    if max(found, default=-1) >= size:
        _refuse(f"it has the id {max(found)}, and the model's embedding table {size} rows")
    filled = [found.get(id, (f"[PAD{id}]", _UNUSED)) for id in range(size)]
    return [token for token, _ in filled], [type for _, type in filled]


def _gpt2(described: Mapping[str, Any], tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """Byte-level BPE: merges, and the name of its splits."""
    model = described["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if not merges:
        _refuse("it is byte-level and merges nothing")
    normalizers = [step["type"] for step in _steps(described["normalizer"])]
    if normalizers not in ([], ["NFC"]):
        _refuse(f"it normalises text ({', '.join(normalizers)})")
    patterns = tuple(pattern for step in _steps(described["pre_tokenizer"]) for pattern in _patterns(step))
    whole_words = bool(model.get("ignore_merges"))
    wanted = (patterns, bool(normalizers), whole_words)
    names = [name for name, split in SPLITS.items() if (split.patterns, split.compose, split.whole_words) == wanted]
    if not names:
        _refuse("the way it splits text into words has no name there")
    return {"pre": names[0], "merges": merges}


def _patterns(step: Mapping[str, Any]) -> list[str]:
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": use_regex}:
            return [GPT2] if use_regex else []
        case {"type": "Digits", "individual_digits": single}:
            return [r"\p{N}" if single else r"\p{N}+"]
        case {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}:
            return [regex]
    _refuse(f"it splits text by a step that they do not have ({step['type']})")


def _llama(described: Mapping[str, Any], tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """SentencePiece BPE, where what merges first has the highest score."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(described["model"]["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    scores = [
        -float(ranks[token]) if token in ranks else _never(type, len(ranks)) for token, type in zip(tokens, types)
    ]
    return {"scores": scores, "add_space_prefix": _space_first(tokenizer)}


def _never(type: int, merges: int) -> float:
    """The score of a token that no merge gives: below those of all that do, for a token out of a text."""
    return -float(merges) if type in (_NORMAL, _UNUSED) else 0.0


def _space_first(tokenizer: Tokenizer) -> bool:
    first = tokenizer._backend.encode("a", add_special_tokens=False).tokens
    return bool(first) and first[0].startswith(_SPACE)


def _t5(described: Mapping[str, Any], tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """SentencePiece unigram: scores, and what its normaliser does."""
    scores = dict(described["model"]["vocab"])
    charsmaps = [step for step in _steps(described["normalizer"]) if step["type"] == "Precompiled"]
    single = tokenizer.encode("a  a", special=False) == tokenizer.encode("a a", special=False)
    return {
        "scores": [float(scores.get(token, _NEVER if type == _UNUSED else 0.0)) for token, type in zip(tokens, types)],
        "add_space_prefix": _space_first(tokenizer),
        "remove_extra_whitespaces": single,
        "precompiled_charsmap": b64decode(charsmaps[0]["precompiled_charsmap"]) if charsmaps else b"",
    }


def _bert(described: Mapping[str, Any], tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> dict[str, Any]:
    """WordPiece: beginnings of words are marked instead of their continuations."""
    normalizer = next((step for step in _steps(described["normalizer"]) if step["type"] == "BertNormalizer"), None)
    if normalizer is None:
        _refuse("it is a WordPiece without BERT's normaliser")
    prefix = described["model"]["continuing_subword_prefix"]
    spelled = []
    for token, type in zip(tokens, types):
        inner = token.startswith(prefix)
        spelled.append(
            token if type in (_CONTROL, _UNUSED) else token.removeprefix(prefix) if inner else _SPACE + token
        )
    roles = tokenizer.special_tokens
    lowercase = bool(normalizer["lowercase"])
    strips = normalizer["strip_accents"]
    return {
        "tokens": spelled,
        "normalizer.lowercase": lowercase,
        "normalizer.strip_accents": lowercase if strips is None else bool(strips),
        # llama.cpp begins a text with this one, whatever it is called.
        **({"bos_token_id": tokens.index(roles["cls_token"])} if roles.get("cls_token") in tokens else {}),
    }


def _around(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> dict[str, bool]:
    """Whether a text is put between the beginning and the end of a text."""
    inner, outer = tokenizer.encode("a", special=False), tokenizer.encode("a")
    begins = outer[:1] if outer[:1] != inner[:1] or len(outer) == 2 + len(inner) else []
    ends = outer[len(begins) + len(inner) :]
    return {
        "add_bos_token": bool(begins) and begins[0] == metadata.get("bos_token_id"),
        "add_eos_token": bool(ends) and ends[0] == metadata.get("eos_token_id"),
    }


def _check(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    readable = {name: list(value) if isinstance(value, bytes) else value for name, value in metadata.items()}
    again = from_gguf(readable)
    for probe in PROBES:
        if again.encode(probe) != tokenizer.encode(probe):
            _refuse(f"read from such a file, it would split {probe[:40]!r} otherwise")
