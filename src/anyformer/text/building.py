"""What vocabularies of several kinds share: merges out of ranks, tokens around a text, tokens beside a vocabulary."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from anyformer.errors import TextError

#: The special tokens of what fairseq trained: RoBERTa, BART, XLM-R.
FAIRSEQ_ROLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "sep_token": "</s>",
    "cls_token": "<s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
_ADDED_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@contextmanager
def naming(where: object) -> Iterator[None]:
    """What is wrong inside is told with the file that it is wrong in."""
    try:
        yield
    except TextError as error:
        raise TextError(f"{where}: {error}") from None


def content(token: Any) -> str | None:
    """A token as tokenizer_config.json writes one: its text, or an object that says more about it."""
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def added_token(token: Any, **flags: bool) -> AddedToken:
    """A token as a JSON file writes it, and what that says of it; `flags` hold where it says nothing."""
    said = {flag: bool(token[flag]) for flag in _ADDED_FLAGS if flag in token} if isinstance(token, Mapping) else {}
    return AddedToken(content(token) or "", **{**flags, **said})


def add_at(backend: Backend, where: str, added: Mapping[str, Any]) -> None:
    """Add tokens that stand beside a vocabulary, each at the id it is said to have. Another id is a `TextError`."""
    if not all(id.isdecimal() for id in added):
        raise TextError(f"the added tokens beside {where} do not say their ids in numbers")
    for id, token in sorted(added.items(), key=lambda each: int(each[0])):
        text = content(token) or ""
        backend.add_tokens([added_token(token)])
        if (found := backend.token_to_id(text)) != int(id):
            raise TextError(
                f"the added token {text!r} should be id {id}, but is {found} beside {where}; these files do not belong "
                f"together"
            )


def merges_of(ranked: Iterable[str], known: Collection[str]) -> list[tuple[str, str]]:
    """The merges of a BPE whose file says only which of two tokens comes first: every pair of known tokens that makes
    a token merges as early as that token stands in `ranked`."""
    pairs = ((token[:at], token[at:]) for token in ranked for at in range(len(token) - 1, 0, -1))
    return [pair for pair in pairs if pair[0] in known and pair[1] in known]


def around(
    ids: Mapping[str, int],
    begin: str | None,
    end: str | None,
    second: Sequence[str | None] | None = None,
    kind: int = 1,
) -> processors.PostProcessor | None:
    """What puts `begin` and `end` around a text. In a pair, `second` is what comes next (`$B` is the other text), all
    of it of token type `kind`; None is no token."""
    pieces = [(piece, 0) for piece in (begin, "$A", end)]
    pair = [*pieces, *((piece, kind) for piece in second or (begin, "$B", end))]
    tokens = [piece for piece in dict.fromkeys((begin, end)) if piece is not None]
    if not tokens:
        return None
    single, both = ([f"{piece}:{at}" for piece, at in each if piece is not None] for each in (pieces, pair))
    return processors.TemplateProcessing(
        single=single, pair=both, special_tokens=[(each, ids[each]) for each in tokens]
    )
