"""SentencePiece models (Kudo & Richardson 2018): unigram and BPE vocabularies over text whose spaces are written as ▁.

A file (`tokenizer.model`, `spiece.model`, `sentencepiece.bpe.model`) is one protocol buffer: the pieces with their
scores and types, and how text is normalised. Encoding gives what SentencePiece itself gives, but that

    - control tokens written out in a text are recognised;
    - a text that is one user-defined symbol and no more has no space put before it, and of symbols that overlap the
      first one is taken;
    - under a map of characters, two accents on one letter are brought into Unicode's order, and an accent after a
      character that stands for several (Ⅻ) composes with the last of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from anyformer.errors import TextError
from anyformer.text import protobuf
from anyformer.text.building import FAIRSEQ_ROLES, around, merges_of, naming
from anyformer.text.folder import Folder
from anyformer.text.tokenizer import Tokenizer

#: How a space is written.
SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
_UNIGRAM, _BPE = 1, 2
#: Lower than any path through the pieces that text may become.
_NEVER = -1e6
#: What makes one grapheme with the character before it, and a code point that parts them: one that is no character yet.
_JOINING = r"[\p{M}\n\x{200C}\x{200D}\x{FF9E}\x{FF9F}\x{1F3FB}-\x{1F3FF}]"
_APART = "\ufff8"


class Pieces(NamedTuple):
    """A vocabulary: each piece's text, score and type by id, and how text is normalised before it.

    `charsmap` maps characters, `space_first` puts a space before a text, `single_spaces` takes away all spaces that
    begin or end a text or follow another one. `roles` are the special tokens by role.
    """

    tokens: list[str]
    scores: list[float]
    types: list[int]
    roles: Mapping[str, str]
    unigram: bool = False
    charsmap: bytes = b""
    space_first: bool = True
    single_spaces: bool = True

    def of_type(self, *types: int) -> list[str]:
        """The pieces of some types."""
        return [token for token, type in zip(self.tokens, self.types, strict=True) if type in types]


class _Style(NamedTuple):
    """Which tokens stand around a text, and how a model's ids differ from its file's.

    `extra`: sentinels `<extra_id_N>` after the pieces, the last one first (T5). `shifted`: the first ids are fairseq's,
    and a mask comes last (XLM-R).
    """

    begins: bool = False
    ends: bool = False
    extra: int = 0
    shifted: bool = False


_LLAMA, _T5, _XLM_R = _Style(begins=True), _Style(ends=True, extra=100), _Style(begins=True, ends=True, shifted=True)
_STYLES = {
    **dict.fromkeys(("llama", "codellama", "mistral", "mixtral", "phi3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3text"), _LLAMA),
    **dict.fromkeys(["t5", "mt5", "umt5", "longt5", "switchtransformers"], _T5),
    "xlmroberta": _XLM_R,
}
_BY_NAME = {"tokenizer.model": "llama", "spiece.model": "t5", "sentencepiece.bpe.model": "xlmroberta"}


def read(folder: Folder, name: str) -> Tokenizer:
    """The tokenizer of a directory whose file `name` is a SentencePiece model.

    Where `legacy` is true, as for Llama's first tokenizers, a space is put before every text between special tokens;
    else before the beginning alone.
    """
    style = folder.style(name, _STYLES, _BY_NAME[name])
    with naming(folder.path / name):
        pieces = parse(folder.files[name])
        if style.shifted:
            pieces = _shifted(pieces)
        if style.extra:
            pieces = _with_sentinels(pieces, folder.config.get("extra_ids", style.extra))
        pieces = pieces._replace(space_first=folder.flag("add_prefix_space", pieces.space_first))
        # Only where nothing is taken away from a text's beginning does the library know it.
        plain = not pieces.single_spaces and not pieces.charsmap
        backend = build(pieces, everywhere=folder.flag("legacy", False) or not plain)
    roles = folder.roles(pieces.roles, backend.get_vocab())
    tokenizer = folder.tokenizer(backend, name, roles)
    begin, end = folder.ends(roles, style.begins, style.ends)
    second = (end, "$B", end) if style.shifted else None
    backend.post_processor = around(backend.get_vocab(), begin, end, second, kind=0 if style.shifted else 1)
    return tokenizer


def parse(data: bytes) -> Pieces:
    """The model in a file's bytes. Raises `TextError` naming the byte where it is damaged, or what is beyond this."""
    try:
        return _parse(data)
    except protobuf.Damaged as error:
        raise TextError(f"it is no SentencePiece model: {error}") from None


def _parse(data: bytes) -> Pieces:
    # Field numbers and defaults: sentencepiece_model.proto of the SentencePiece project.
    tokens: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer: dict[int, protobuf.Field] = {}
    normalizer: dict[int, protobuf.Field] = {}
    for field in protobuf.fields(data, 0, len(data)):
        if field.number == 1:
            piece = {inside.number: inside for inside in field.fields()}
            tokens.append(piece[1].string() if 1 in piece else "")
            scores.append(piece[2].real() if 2 in piece else 0.0)
            types.append(piece[3].integer() if 3 in piece else NORMAL)
        elif field.number == 2:
            trainer |= {inside.number: inside for inside in field.fields()}
        elif field.number == 3:
            normalizer |= {inside.number: inside for inside in field.fields()}
    if not tokens:
        raise protobuf.Damaged("it has no pieces")

    def number(fields: Mapping[int, protobuf.Field], at: int, default: int) -> int:
        return fields[at].integer() if at in fields else default

    kind = number(trainer, 3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE):
        raise TextError("it is neither a unigram model nor BPE; train one of those")
    if number(trainer, 24, False):
        raise TextError("it writes spaces after words (treat_whitespace_as_suffix), which is not known here")
    named = {"unk_token": (40, 0), "bos_token": (41, 1), "eos_token": (42, 2), "pad_token": (43, -1)}
    ids = {role: number(trainer, *field) for role, field in named.items()}
    return Pieces(
        tokens,
        scores,
        types,
        roles={role: tokens[id] for role, id in ids.items() if 0 <= id < len(tokens)},
        unigram=kind == _UNIGRAM,
        charsmap=normalizer[2].bytes() if 2 in normalizer else b"",
        space_first=bool(number(normalizer, 3, True)),
        single_spaces=bool(number(normalizer, 4, True)),
    )


def _shifted(pieces: Pieces) -> Pieces:
    """XLM-R's ids (Conneau et al. 2020): fairseq's four special tokens, then all but the file's own three, a mask."""
    return pieces._replace(
        tokens=["<s>", "<pad>", "</s>", "<unk>", *pieces.tokens[3:], "<mask>"],
        scores=[0.0] * 4 + pieces.scores[3:] + [0.0],
        types=[CONTROL, CONTROL, CONTROL, UNKNOWN, *pieces.types[3:], CONTROL],
        roles=FAIRSEQ_ROLES,
    )


def _with_sentinels(pieces: Pieces, count: Any) -> Pieces:
    """T5's vocabulary (Raffel et al. 2020): sentinels after the pieces, the last one first."""
    if type(count) is not int or count < 0:
        raise TextError(f"extra_ids beside it is {count!r}; it is the number of sentinels, a whole number from 0 on")
    return pieces._replace(
        tokens=[*pieces.tokens, *(f"<extra_id_{number}>" for number in reversed(range(count)))],
        scores=pieces.scores + [0.0] * count,
        types=pieces.types + [CONTROL] * count,
    )


def build(pieces: Pieces, everywhere: bool = True, merges: list[tuple[str, str]] | None = None) -> Backend:
    """A tokenizer of these pieces; a BPE's `merges` follow from the scores unless they are given. The space that is put
    first begins every text between special tokens with `everywhere`, else the very first alone."""
    ids = {token: id for id, token in enumerate(pieces.tokens)}
    if len(ids) < len(pieces.tokens):
        raise TextError(f"two of its {len(pieces.tokens)} pieces are the same")
    backend = Backend(_unigram(pieces, ids) if pieces.unigram else _bpe(pieces, ids, merges))
    _normalise(backend, pieces, everywhere)
    strip = [decoders.Strip(" ", 1, 0)] if pieces.space_first else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    backend.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in pieces.of_type(UNKNOWN, CONTROL)]
        # Found in the text as it is normalised: SentencePiece looks for them after the space before a text is there.
        + [AddedToken(token, normalized=True) for token in pieces.of_type(USER_DEFINED)]
    )
    return backend


def _unigram(pieces: Pieces, ids: dict[str, int]) -> models.Model:
    if "unk_token" not in pieces.roles:
        raise TextError("the unigram vocabulary has no unknown token")
    matched = (NORMAL, USER_DEFINED)
    scores = [score if type in matched else _NEVER for score, type in zip(pieces.scores, pieces.types, strict=True)]
    unknown = ids[pieces.roles["unk_token"]]
    return models.Unigram(list(zip(pieces.tokens, scores, strict=True)), unknown, byte_fallback=True)


def _bpe(pieces: Pieces, ids: dict[str, int], merges: list[tuple[str, str]] | None) -> models.Model:
    if merges is None:
        # Such as fill a padded vocabulary up: no merge gives them, and nothing merges by way of them.
        unused = pieces.of_type(UNUSED)
        if merged := [token for token in unused if len(token) == 1 or merges_of([token], ids)]:
            raise TextError(f"the piece {merged[0]!r} is marked as unused, and BPE here cannot leave it out of a text")
        score = dict(zip(pieces.tokens, pieces.scores, strict=True))
        merges = merges_of(sorted(pieces.of_type(NORMAL), key=lambda token: -score[token]), ids)
    unknown = pieces.roles.get("unk_token")
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def _mapping(charsmap: bytes) -> list[Any]:
    """What maps characters as SentencePiece does.

    The library maps a letter and its marks as one, which loses the marks where the letter alone is in the map, and
    composes nothing of more than five bytes. So they are mapped apart, and composed after.
    """
    mapped = normalizers.Precompiled(charsmap)
    composed = [normalizers.NFC()] if mapped.normalize_str("e\u0301") == "é" else []
    apart = [normalizers.Replace(Regex(rf"(?!\A)(?={_JOINING})"), _APART), mapped, normalizers.Replace(_APART, "")]
    return [*apart, *composed]


def _normalise(backend: Backend, pieces: Pieces, everywhere: bool) -> None:
    steps: list[Any] = []
    if pieces.charsmap:
        steps += _mapping(pieces.charsmap)
    if pieces.single_spaces:
        steps.append(normalizers.Replace(Regex(rf"\A +|[ {SPACE}]+\z| +(?= )"), ""))
    steps.append(normalizers.Replace(" ", SPACE))
    # Words are looked up one by one, and remembered, where no piece holds more than one.
    splits = pieces.unigram and all(SPACE not in token[1:] for token in pieces.tokens)
    if pieces.space_first and not everywhere:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                # No text begins with the replacement, so that the space is put there even before another one.
                pre_tokenizers.Metaspace(" ", prepend_scheme="first", split=False),
                pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=splits),
            ]
        )
    elif splits:
        backend.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    normalise = normalizers.Sequence(steps)
    if pieces.space_first and everywhere:
        # Not before a token alone: the library normalises the tokens that it looks for, too.
        alone = [re.escape(normalise.normalize_str(token)) for token in pieces.of_type(USER_DEFINED)]
        normalise = normalizers.Sequence(
            [*steps, normalizers.Replace(Regex(rf"\A(?!(?:{'|'.join(alone)})\z)(?!\z)"), SPACE)]
        )
    backend.normalizer = normalise
