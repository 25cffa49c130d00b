"""Tokenizers out of a checkpoint's directory: tokenizer.json, or the vocab.txt of WordPiece."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from anyformer.errors import TextError
from anyformer.text.tokenizer import Tokenizer, content

#: Everything a tokenizer may leave in a directory; a save writes it back as it was.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)

#: The tokenizer classes whose vocab.txt is BERT's; other classes mean other things by that name.
WORD_PIECE_CLASSES = ("Bert", "DistilBert", "Electra", "MobileBert", "ConvBert", "SqueezeBert", "LayoutLM", "Retribert")

WORD_PIECE_ROLES = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}

_ADDED_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def load(directory: str | Path) -> Tokenizer | None:
    """The tokenizer in a directory, or None where there is no tokenizer.json and no vocab.txt.

    Raises `TextError` naming the file that cannot be read or is not what its name says.
    """
    directory = Path(directory)
    try:
        files = {name: (directory / name).read_bytes() for name in FILES if (directory / name).is_file()}
    except OSError as error:
        raise TextError(f"cannot read {error.filename}: {error.strerror or error}") from None
    # The map is older than the config, which says the same and more; it speaks where the config is silent.
    config = {**_json(directory, "special_tokens_map.json", files), **_json(directory, "tokenizer_config.json", files)}
    if "tokenizer.json" in files:
        return Tokenizer(_tokenizer_json(directory, files["tokenizer.json"]), config, files)
    if "vocab.txt" in files:
        added = _json(directory, "added_tokens.json", files)
        return Tokenizer(_word_piece(directory / "vocab.txt", files["vocab.txt"], config, added), config, files)
    return None


def _json(directory: Path, name: str, files: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        data = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise TextError(f"{directory / name} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise TextError(f"{directory / name} is not a JSON object")
    return data


def _tokenizer_json(directory: Path, data: bytes) -> Backend:
    try:
        return Backend.from_buffer(data)
    # The library raises bare exceptions, whatever is wrong.
    except Exception as error:
        raise TextError(f"{directory / 'tokenizer.json'} is not a tokenizer: {error}") from None


def _word_piece(path: Path, data: bytes, config: Mapping[str, Any], added: Mapping[str, Any]) -> Backend:
    """BERT's tokenizer (Devlin et al. 2019): a token a line, its id the line's number."""
    named = str(config.get("tokenizer_class") or "BertTokenizer")
    if named.removesuffix("Fast").removesuffix("Tokenizer") not in WORD_PIECE_CLASSES:
        raise TextError(f"{path} belongs to a {named}, which is not known here; add its tokenizer.json")
    try:
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 at byte {error.start}") from None
    vocabulary = {line.removesuffix("\r"): id for id, line in enumerate(lines)}
    roles = {role: content(config.get(role)) or token for role, token in WORD_PIECE_ROLES.items()}
    if roles["unk_token"] not in vocabulary:
        raise TextError(f"{path} has no token '{roles['unk_token']}' for unknown words; it is no WordPiece vocabulary")
    strip_accents = config.get("strip_accents")
    backend = word_piece(
        vocabulary,
        roles,
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=None if strip_accents is None else bool(strip_accents),
        split_han=bool(config.get("tokenize_chinese_chars", True)),
    )
    beside = config.get("added_tokens_decoder")
    _add(
        backend, path, {**(beside if isinstance(beside, dict) else {}), **{str(id): text for text, id in added.items()}}
    )
    return backend


def word_piece(
    vocabulary: Mapping[str, int],
    roles: Mapping[str, str],
    lowercase: bool,
    strip_accents: bool | None,
    split_han: bool,
) -> Backend:
    """A WordPiece tokenizer with BERT's rules; `strip_accents` None means wherever it lowercases."""
    backend = Backend(models.WordPiece(dict(vocabulary), unk_token=roles["unk_token"]))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=split_han
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in roles.values() if token in vocabulary]
    )
    begin, end = roles["cls_token"], roles["sep_token"]
    if begin in vocabulary and end in vocabulary:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{begin}:0 $A:0 {end}:0",
            pair=f"{begin}:0 $A:0 {end}:0 $B:1 {end}:1",
            special_tokens=[(begin, vocabulary[begin]), (end, vocabulary[end])],
        )
    return backend


def _add(backend: Backend, path: Path, added: Mapping[str, Any]) -> None:
    """Add the tokens that stand beside the vocabulary, each at the id it is said to have."""
    texts = {id: content(token) for id, token in added.items()}
    if not all(id.isdecimal() for id in texts):
        raise TextError(f"the added tokens beside {path} do not say their ids in numbers")
    for id, text in sorted(texts.items(), key=lambda each: int(each[0])):
        said = added[id] if isinstance(added[id], dict) else {}
        flags = {flag: bool(said[flag]) for flag in _ADDED_FLAGS if flag in said}
        backend.add_tokens([AddedToken(text or "", **flags)])
        found = backend.token_to_id(text or "")
        if found != int(id):
            raise TextError(
                f"the added token {text!r} should be id {id}, but is {found} beside {path}; these files do not belong "
                f"together"
            )
