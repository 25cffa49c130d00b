"""Tokenizers out of a GGUF file's metadata (`tokenizer.ggml.*`), for each kind of vocabulary that ggml has:

    gpt2     byte-level BPE with merges; `tokenizer.ggml.pre` names how it splits words
    gemma4   BPE with merges over characters; bytes stand for characters it does not know
    llama    SentencePiece BPE: the scores say what merges first; bytes stand for characters it does not know
    bert     WordPiece, which marks the beginnings of words with ▁ instead of their continuations with ##
    t5       SentencePiece unigram

Source: the GGUF specification of the ggml project, section "Tokenizer".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from anyformer.errors import TextError
from anyformer.text import sentencepiece, wordpiece
from anyformer.text.building import around
from anyformer.text.bytelevel import byte_level_bpe
from anyformer.text.sentencepiece import CONTROL, NORMAL, SPACE, UNKNOWN, USER_DEFINED, Pieces
from anyformer.text.splits import find_split
from anyformer.text.tokenizer import Tokenizer

_PREFIX = "tokenizer.ggml."
_SPECIAL = (UNKNOWN, CONTROL)

#: The special tokens by role, and what GGUF files call their ids ('seperator' is how their writers spell it).
_ROLES = {
    "bos_token": ("bos",),
    "eos_token": ("eos",),
    "unk_token": ("unknown",),
    "sep_token": ("seperator", "separator"),
    "pad_token": ("padding",),
    "cls_token": ("cls",),
    "mask_token": ("mask",),
}


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file's metadata describes, with its chat template.

    Raises `TextError` for a kind of vocabulary or pre-tokenizer that is unknown, and for keys that do not fit together.
    """
    kind = metadata.get(_PREFIX + "model")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise TextError(f"the file's tokenizer is of kind {kind!r}; known kinds: {', '.join(_KINDS)}")
    build, spelling = _KINDS[kind]
    vocabulary = _Vocabulary(metadata, spelling)
    try:
        backend = build(vocabulary)
    except TextError:
        raise
    # The library raises bare exceptions, whatever does not fit.
    except Exception as error:
        raise TextError(f"the file's vocabulary cannot be used: {error}") from None
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    backend.add_tokens([token for token in vocabulary.added() if token.content not in known])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **vocabulary.roles}
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(backend, {**config, "chat_template": template} if isinstance(template, str) else config)


class _Vocabulary:
    """The keys under `tokenizer.ggml`, held against each other.

    `spelling` is how the kind writes a token, told whether it is special.
    """

    def __init__(self, metadata: Mapping[str, Any], spelling: Callable[[str, bool], str]) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self.array("tokens", str)
        if not self.tokens:
            raise TextError(f"the file's vocabulary is empty ({_PREFIX}tokens)")
        self.types = self.array("token_type", int, per_token=NORMAL)
        self.scores = self.array("scores", float, int, per_token=0.0)
        typed = enumerate(zip(self.tokens, self.types, strict=True))
        self.tokens = [spelling(token, type in _SPECIAL) or f"[EMPTY_{id}]" for id, (token, type) in typed]
        self.ids = {token: id for id, token in enumerate(self.tokens)}
        self.special = self.of_type(*_SPECIAL)
        by_role = {role: self._named(names) for role, names in _ROLES.items()}
        by_role["unk_token"] = by_role["unk_token"] or next(iter(self.of_type(UNKNOWN)), None)
        self.roles = {role: token for role, token in by_role.items() if token is not None}

    def get(self, key: str, default: Any) -> Any:
        """The value of a key, or `default`, of whose type it must be."""
        value = self._metadata.get(_PREFIX + key, default)
        if not isinstance(value, type(default)):
            raise TextError(f"{_PREFIX}{key} is not a {type(default).__name__}, as it should be")
        return value

    def array(self, key: str, *kinds: type, per_token: Any = None) -> list[Any]:
        """The list under a key; with `per_token`, one value for each token, that one where the file has none."""
        values = self.get(key, [])
        if not all(isinstance(value, kinds) for value in values):
            raise TextError(f"{_PREFIX}{key} holds something else than values of type {kinds[0].__name__}")
        if per_token is not None and len(values) not in (0, len(self.tokens)):
            raise TextError(f"{_PREFIX}{key} has {len(values)} entries for {len(self.tokens)} tokens")
        return values if per_token is None or values else [per_token] * len(self.tokens)

    def _named(self, names: tuple[str, ...]) -> str | None:
        """The first special token that has an id; files exist whose ids lie outside of their vocabulary."""
        ids = (self.get(f"{name}_token_id", -1) for name in names)
        return next((self.tokens[id] for id in ids if 0 <= id < len(self.tokens)), None)

    def of_type(self, *types: int) -> list[str]:
        """The tokens of some types."""
        return [token for token, type in zip(self.tokens, self.types, strict=True) if type in types]

    def added(self) -> list[AddedToken]:
        """The tokens that are recognised as they stand, before a text is split."""
        special = {*self.special, *self.roles.values()}
        tokens = dict.fromkeys([*self.special, *self.of_type(USER_DEFINED), *self.roles.values()])
        return [AddedToken(token, special=token in special, normalized=False) for token in tokens]

    def merges(self) -> list[tuple[str, str]]:
        """The merges of a BPE, the first ones first."""
        merges = [(merge, merge.find(" ", 1)) for merge in self.array("merges", str)]
        if not merges:
            raise TextError(f"the file's vocabulary has no merges ({_PREFIX}merges); convert the model again")
        return [(merge[:space], merge[space + 1 :]) for merge, space in merges]

    def around(self, begins: bool, ends: bool = False) -> processors.PostProcessor | None:
        """What puts special tokens around a text; `begins` and `ends` hold where the file does not say."""
        bos = self.roles.get("bos_token") if self.get("add_bos_token", begins) else None
        eos = self.roles.get("eos_token") if self.get("add_eos_token", ends) else None
        return around(self.ids, bos, eos)

    def pieces(self, unigram: bool = False, space_first: bool = True) -> Pieces:
        """The vocabulary as SentencePiece has it; `space_first` holds where the file does not say. BPE takes text as it
        is, whatever the file says of normalising."""
        return Pieces(
            self.tokens,
            self.scores,
            self.types,
            self.roles,
            unigram,
            charsmap=bytes(self.array("precompiled_charsmap", int)) if unigram else b"",
            space_first=self.get("add_space_prefix", space_first),
            single_spaces=unigram and self.get("remove_extra_whitespaces", True),
        )


def _byte_level_bpe(vocabulary: _Vocabulary) -> Backend:
    # Files older than the key hold GPT-2's own kind of vocabulary.
    split = find_split(vocabulary.get("pre", "gpt-2"))
    backend = byte_level_bpe(vocabulary.ids, vocabulary.merges(), split)
    backend.post_processor = vocabulary.around(split.begins)
    return backend


def _gemma_bpe(vocabulary: _Vocabulary) -> Backend:
    backend = sentencepiece.build(vocabulary.pieces(space_first=False), merges=vocabulary.merges())
    backend.post_processor = vocabulary.around(begins=True)
    return backend


def _sentencepiece_bpe(vocabulary: _Vocabulary) -> Backend:
    backend = sentencepiece.build(vocabulary.pieces())
    backend.post_processor = vocabulary.around(begins=True)
    return backend


def _unigram(vocabulary: _Vocabulary) -> Backend:
    backend = sentencepiece.build(vocabulary.pieces(unigram=True))
    backend.post_processor = vocabulary.around(begins=False, ends=True)
    return backend


def _word_piece(vocabulary: _Vocabulary) -> Backend:
    roles = {**wordpiece.ROLES, **vocabulary.roles}
    if "cls_token" not in vocabulary.roles and "bos_token" in vocabulary.roles:
        roles["cls_token"] = vocabulary.roles["bos_token"]
    lowercase = vocabulary.get("normalizer.lowercase", True)
    strip_accents = vocabulary.get("normalizer.strip_accents", lowercase)
    return wordpiece.word_piece(vocabulary.ids, roles, lowercase, strip_accents, split_han=True)


def _as_bert_spells(token: str, special: bool) -> str:
    """A word's beginning bare, its continuation after ##, what is special or in brackets as it is."""
    if token.startswith(SPACE):
        return token.removeprefix(SPACE)
    return token if special or (token.startswith("[") and token.endswith("]")) else "##" + token


def _as_it_is(token: str, special: bool) -> str:
    return token


_KINDS: dict[str, tuple[Callable[[_Vocabulary], Backend], Callable[[str, bool], str]]] = {
    "gpt2": (_byte_level_bpe, _as_it_is),
    "gemma4": (_gemma_bpe, _as_it_is),
    "llama": (_sentencepiece_bpe, _as_it_is),
    "bert": (_word_piece, _as_bert_spells),
    "t5": (_unigram, _as_it_is),
}
