"""Marian's tokenizers (Junczys-Dowmunt et al. 2018; OPUS-MT): `source.spm` and `target.spm`, SentencePiece models of
the two languages, and `vocab.json`, the ids that the model gives the pieces of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer as Backend
from tokenizers import models

from anyformer.errors import TextError
from anyformer.text import sentencepiece
from anyformer.text.building import naming
from anyformer.text.folder import Folder
from anyformer.text.tokenizer import Tokenizer

_SOURCE, _VOCABULARY = "source.spm", "vocab.json"
_ROLES = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}


class MarianTokenizer(Tokenizer):
    """Encodes the source's language: its pieces, by their text, in the vocabulary, and the end of text after them. A
    text may begin with the language that it is to be translated to, as in `>>fra<< Hello`. Decodes either language.

    Pieces that the vocabulary lacks are unknown. Punctuation is taken as it is; OPUS-MT's own tools normalise it first.
    """

    def __init__(self, folder: Folder, source: Backend) -> None:
        vocabulary = folder.ids(_VOCABULARY)
        roles = folder.roles(_ROLES, vocabulary)
        for role in _ROLES:
            if roles.get(role) not in vocabulary:
                raise TextError(f"{folder.path / _VOCABULARY} lacks the {role} '{roles.get(role, _ROLES[role])}'")
        backend = Backend(models.BPE(vocabulary, []))
        backend.decoder = source.decoder
        backend.add_special_tokens(list(roles.values()))
        source.add_special_tokens(list(roles.values()))
        super().__init__(backend, {**roles, **folder.config}, folder.files)
        self._source, self._vocabulary = source, vocabulary
        self._unknown, self._end = vocabulary[roles["unk_token"]], vocabulary[roles["eos_token"]]

    def with_special(self, roles: Mapping[str, str], others: Sequence[str] = ()) -> Tokenizer:
        """Refused: what the files say can take no more tokens."""
        wanted = ", ".join([*roles.values(), *others])
        raise TextError(
            f"Marian's vocabulary takes no more special tokens, and {wanted} are wanted; use a tokenizer.json instead"
        )

    def _encoded(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        parted = [_language(text) for text in texts]
        encodings = self._source.encode_batch([text for _, text in parted], add_special_tokens=False)
        pieces = [[*language, *encoding.tokens] for (language, _), encoding in zip(parted, encodings, strict=True)]
        end = [self._end] if special else []
        return [[self._vocabulary.get(piece, self._unknown) for piece in each] + end for each in pieces]

    def _made(self) -> dict[str, bytes]:
        # No tokenizer.json can hold pieces of one vocabulary with the ids of another.
        return {}


def read(folder: Folder) -> Tokenizer:
    """The tokenizer of a directory with source.spm and vocab.json."""
    folder.style(_SOURCE, {"marian": True}, "marian")
    if _VOCABULARY not in folder.files:
        raise TextError(f"{folder.path / _SOURCE} needs {_VOCABULARY} beside it, which gives its pieces their ids")
    if folder.flag("separate_vocabs", False):
        raise TextError(f"{folder.path} has a vocabulary for each language (separate_vocabs), which is not known here")
    with naming(folder.path / _SOURCE):
        source = sentencepiece.build(sentencepiece.parse(folder.files[_SOURCE]))
    return MarianTokenizer(folder, source)


def _language(text: str) -> tuple[list[str], str]:
    """The language that a text begins with, if it names one, and what comes after."""
    name, mark, rest = text.partition("<<")
    return ([name + mark], rest) if mark and name.startswith(">>") else ([], text)
