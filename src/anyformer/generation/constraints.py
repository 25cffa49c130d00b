"""What an answer may say at all: a JSON schema, a regular expression or a grammar, held to the letter.

A constraint is a set of texts. `llguidance` follows an answer through it byte by byte, and of every token it knows
whether the answer can go on with it and still become one of these texts; all others are made impossible before a token
is chosen. The end token is possible where the text is whole, and nothing else is where it can only end.

A token is the bytes that it adds to the decoded text. At its beginning these may be others (a word without the space
before it), so there a token is followed under an id of its own:

    id     0 .. V-1, what a token adds later     V .. 2V-1, what it adds at the beginning
    token  "▁yes" -> " yes"                      "▁yes" -> "yes"
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.generation.settings import Settings
from anyformer.text import Tokenizer

#: What may stand between the parts of a JSON text. Were it any amount of space, some models would never end.
_WHITESPACE = r"( |\n[ \t]{0,20})?"
#: Every token that fits is possible, not only those that the tokenizer would write the text with.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'


class Vocabulary:
    """The tokens of a tokenizer as texts are followed with them; `eos` are the ids that end one."""

    def __init__(self, tokenizer: Tokenizer, eos: tuple[int, ...]) -> None:
        self.size = max(tokenizer.vocabulary_size, *(id + 1 for id in eos))
        self.eos = list(eos)
        self.later, begin = self._table(tokenizer, first=False), self._table(tokenizer, first=True)
        #: How far the ids that begin a text stand from the others.
        self.shift = 0 if begin == self.later else self.size
        self.tokens = self.later if begin == self.later else [*self.later, *begin]
        self.backend = _llguidance().LLTokenizer(_Wrapped(self.tokens, eos), eos_token=self.eos)

    def _table(self, tokenizer: Tokenizer, first: bool) -> list[bytes]:
        table = tokenizer.written(first)
        if table is None:
            raise InputError(
                "this tokenizer decodes only whole texts, so what a token adds to an answer is not known; constraints "
                "need a tokenizer that decodes token by token"
            )
        table += [b""] * (self.size - len(table))
        return [b"" if id in self.eos else written for id, written in enumerate(table)]


class _Wrapped:
    """What llguidance asks of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: list[bytes], eos: tuple[int, ...]) -> None:
        self.tokens, self.eos_token_id = tokens, eos[0]

    def __call__(self, text: bytes) -> list[int]:
        raise AssertionError("nothing is forced, so no text becomes tokens")


_KNOWN: WeakKeyDictionary[Tokenizer, dict[tuple[int, ...], Vocabulary]] = WeakKeyDictionary()


def _vocabulary(tokenizer: Tokenizer, eos: tuple[int, ...]) -> Vocabulary:
    """Of each tokenizer one is made: for 50,000 tokens that takes a second."""
    known = _KNOWN.setdefault(tokenizer, {})
    if eos not in known:
        known[eos] = Vocabulary(tokenizer, eos)
    return known[eos]


class Line:
    """One answer, as far as it has come."""

    def __init__(self, vocabulary: Vocabulary, matcher: Any, text: bytes = b"", over: bool = False) -> None:
        self.vocabulary, self._matcher, self._text, self.over = vocabulary, matcher, text, over

    def copy(self) -> Line:
        """Another answer that has come as far."""
        return Line(self.vocabulary, self._matcher.deep_copy(), self._text, self.over)

    def mask(self) -> np.ndarray:
        """Whether each id [V] may come next. Raises `InputError` where none may."""
        if self.over:
            return np.ones(self.vocabulary.size, dtype=bool)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little").view(bool)
        mask = bits[self._shift : self._shift + self.vocabulary.size].copy()
        mask[self.vocabulary.eos] = bits[self.vocabulary.eos]
        wrong = self._matcher.get_error()
        if wrong and not wrong.startswith("NoExtension"):
            raise InputError(f"the constraint cannot be followed: {_complaint(wrong)}; simplify it")
        if wrong or not mask.any():
            raise InputError(
                f"after {self._said} no token of this vocabulary goes on as the constraint asks; loosen it, or take a "
                f"model whose tokenizer can write what it asks for"
            )
        return mask

    def advance(self, id: int) -> None:
        """Go on with a token. Raises `InputError` for one that the constraint does not allow, which another setting has
        forced."""
        if self.over or id in self.vocabulary.eos:
            self.over = True
            return
        # A model may know more tokens than its tokenizer.
        known = id < self.vocabulary.size
        written = self.vocabulary.tokens[id + self._shift] if known else b""
        if not known or (written and not self._matcher.consume_token(id + self._shift)):
            what = f"token {id}, {written!r}" if known else f"token {id}"
            raise InputError(f"after {self._said} the constraint does not allow {what}; take back forced_bos")
        self._text += written

    @property
    def _shift(self) -> int:
        """What is added to the ids of the next token."""
        return 0 if self._text else self.vocabulary.shift

    @property
    def _said(self) -> str:
        return repr(self._text[-40:].decode("utf-8", "replace")) if self._text else "the prompt"


class Constraint:
    """What the answers of a batch may still say; `lines` has one a row."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = list(lines)

    def allowed(self, logits_BV: Tensor) -> Tensor:
        """The logits, -inf for every id that a row must not go on with."""
        masks = np.stack([line.mask() for line in self.lines])
        V = logits_BV.shape[1]
        masks = np.pad(masks, ((0, 0), (0, max(0, V - masks.shape[1]))))[:, :V]
        return logits_BV.masked_fill(~torch.from_numpy(masks).to(logits_BV.device), -torch.inf)

    def advance(self, ids_B: Tensor) -> None:
        """Take in the next id of each row; after an end, what follows is no part of the answer."""
        for line, id in zip(self.lines, ids_B.tolist(), strict=True):
            line.advance(id)

    def rows(self) -> list[Constraint]:
        """The constraint of each row by itself."""
        return [Constraint([line]) for line in self.lines]

    def of_rows(self, rows: Sequence[int]) -> Constraint:
        """The constraint of these rows, which go on by themselves."""
        return Constraint([self.lines[row].copy() for row in rows])

    def copy(self) -> Constraint:
        """A constraint whose rows have come as far, and go on by themselves."""
        return self.of_rows(range(len(self.lines)))

    def reorder(self, rows: Sequence[int]) -> None:
        """Let row i continue what row rows[i] has said."""
        self.lines = self.of_rows(rows).lines


def constraint_of(settings: Settings, tokenizer: Tokenizer | None, rows: int) -> Constraint | None:
    """What the settings ask of `rows` answers, of every prompt `settings.answers` after each other; None where they ask
    nothing. Raises `InputError` for a constraint that cannot be read or followed, saying what is wrong with it."""
    grammars = _grammars(settings)
    if not grammars:
        return None
    if tokenizer is None:
        raise InputError("a constraint holds for texts, and this model has no tokenizer; set model.tokenizer")
    if not settings.eos:
        raise InputError("a constrained answer ends with an end token, and none is known; give eos=")
    prompts = rows // settings.answers
    if len(grammars) not in (1, prompts):
        raise InputError(
            f"there are {len(grammars)} constraints for {prompts} prompts; give one for each, or one for all together"
        )
    vocabulary = _vocabulary(tokenizer, settings.eos)
    begun = [_begun(vocabulary, *named) for named in grammars]
    each = [line for line in begun for _ in range(rows // len(begun))]
    return Constraint([line.copy() for line in each])


def _begun(vocabulary: Vocabulary, name: str, grammar: str) -> Line:
    """An answer that has said nothing, under a grammar in llguidance's Lark that the user knows as `name`."""
    matcher = _llguidance().LLMatcher
    wrong, messages = matcher.validate_grammar_with_warnings(grammar, vocabulary.backend)
    if wrong:
        raise InputError(f"the {name} cannot be used: {_complaint(messages[0], pointing=name == 'grammar')}")
    return Line(vocabulary, matcher(vocabulary.backend, grammar, log_level=0))


def _grammars(settings: Settings) -> list[tuple[str, str]]:
    """The constraints of the settings, what each is and as a grammar in llguidance's Lark: one for all prompts, or one
    for each."""
    schemas = [("JSON schema", f"start: %json {_schema(schema)}") for schema in settings.json_schema]
    patterns = [("regular expression", _lark_of(pattern)) for pattern in settings.regex]
    grammars = [("grammar", grammar) for grammar in settings.grammar]
    return [(name, grammar + _OPTIONS) for name, grammar in (*schemas, *patterns, *grammars)]


def _schema(given: dict[str, Any] | str) -> str:
    """The text of a JSON schema that says how much space may stand between its parts."""
    try:
        schema = json.loads(given) if isinstance(given, str) else given
        if not isinstance(schema, dict):
            raise InputError(f"a JSON schema is an object, not {json.dumps(schema)[:40]}")
        return json.dumps({"x-guidance": {"whitespace_pattern": _WHITESPACE}, **schema})
    except json.JSONDecodeError as error:
        raise InputError(f"the JSON schema is no JSON: {error}") from None
    except TypeError as error:
        raise InputError(f"the JSON schema cannot be written as JSON: {error}") from None


def _lark_of(pattern: str) -> str:
    """A grammar of the texts that a regular expression matches whole."""
    written = json.loads(_llguidance().LLMatcher.grammar_from_regex(pattern))
    return written["grammars"][0]["lark_grammar"]


def _complaint(message: str, pointing: bool = False) -> str:
    """What llguidance says is wrong, in one line: the reason, and where, `pointing` into what the user wrote."""
    said = [line.strip() for line in re.split(r"\n\s+1 \| |\n<state>", message)[0].splitlines()]
    reasons = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    first = re.sub(r" \(in regex\)|failed to compile JSON schema: |:? ?regex parse error:$", "", said[0])
    first = re.sub(r"^(at )?(\d+)\((\d+)\): ", r"line \2, column \3: " if pointing else "", first)
    return ": ".join(filter(None, [first, *reasons[:1]]))


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise InputError("constraints need the package llguidance: pip install 'anyformer[constrain]'") from None
    return llguidance
