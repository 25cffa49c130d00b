"""Where speculation's proposals come from: a smaller model, or what was said before.

Prompt lookup costs next to nothing, and does well where an answer says again what stands in its prompt or source (a
summary, a correction, code): what followed the last tokens where they stood before is likely to follow them again.

    ... the quick brown fox jumps over ... and so the quick     proposed   brown fox jumps over
        ---------                             ---------
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol

import torch
from torch import Tensor

from anyformer.generation.constraints import Constraint
from anyformer.generation.decoding import Decoder, most_new, read
from anyformer.generation.penalties import Said
from anyformer.generation.prompts import Prompts, left_padded
from anyformer.generation.sampling import Draws, distribution, drawn, likeliest
from anyformer.generation.settings import Settings

#: A draft model proposes so many tokens at most.
MOST_DRAFTED = 16
#: In the first round a row is proposed so many.
FIRST_WIDTH = 4
#: Prompt lookup matches so many last tokens at most.
LONGEST_MATCH = 3


@dataclass
class Row:
    """An answer on its way. `text` is its prompt and what it has said, `said` tokens; `place` is where it stood in the
    batch at first; `width` is how many tokens are worth proposing next."""

    place: int
    text: list[int]
    history: Said
    draws: Draws | None
    constraint: Constraint | None
    width: int = FIRST_WIDTH
    said: int = 0
    over: bool = False
    #: What the model had said of each token that was not handed out yet.
    logits: list[Tensor] = field(default_factory=list)

    def uniform(self, count: int) -> Tensor:
        """Its next numbers, [count]."""
        assert self.draws is not None
        return torch.cat([self.draws.next() for _ in range(count)])

    def adapt(self, proposed: int, accepted: int) -> None:
        """Have more proposed where all was accepted, else one more than was."""
        if proposed:
            self.width = self.width + 2 if accepted == proposed else accepted + 1


@dataclass(frozen=True, slots=True)
class Proposal:
    """Tokens proposed to each row, and the probabilities [B, K, V] that they were drawn from; None where they are
    certain."""

    tokens: list[list[int]]
    shares: Tensor | None = None


class Proposer(Protocol):
    """Something that proposes tokens, `most` at a time."""

    most: int

    def propose(self, rows: Sequence[Row], widths: Sequence[int]) -> Proposal:
        """At most widths[i] tokens to follow row i."""
        ...

    def settle(self, rows: Sequence[Row], kept: Sequence[int]) -> None:
        """Take in how the rows go on; kept[i] is where row i stood among those before."""
        ...


class PromptLookup:
    """Proposes what followed the last tokens where they stood before, in the row's source, prompt or answer: the
    longest match, and of several the latest (Saxena 2023, "Prompt Lookup Decoding")."""

    def __init__(self, most: int, sources: Sequence[Sequence[int]], vocabulary: int) -> None:
        self.most, self._vocabulary = most, vocabulary
        self._pasts = [Past(source) for source in sources]

    def propose(self, rows: Sequence[Row], widths: Sequence[int]) -> Proposal:
        found = [self._pasts[row.place].follow(row.text, width) for row, width in zip(rows, widths)]
        # A source may have tokens that no answer can say.
        return Proposal([list(takewhile(lambda token: token < self._vocabulary, its)) for its in found])

    def settle(self, rows: Sequence[Row], kept: Sequence[int]) -> None:
        """Nothing is held that must be taken back."""


class Past:
    """A source and the text that follows it, and where each run of tokens in them was last continued."""

    def __init__(self, source: Sequence[int]) -> None:
        self._source, self._ids = len(source), list(source)
        self._continued: dict[tuple[int, ...], int] = {}
        self._indexed = 1

    def follow(self, text: Sequence[int], count: int) -> list[int]:
        """`count` tokens that may follow a text, which has only grown since the last call; none where nothing stood
        there before. Where what is copied comes to its own end, it goes on with itself."""
        self._ids += text[len(self._ids) - self._source :]
        ids = self._ids
        for end in range(self._indexed, len(ids)):
            for length in range(1, min(LONGEST_MATCH, end) + 1):
                self._continued[tuple(ids[end - length : end])] = end
        self._indexed = max(self._indexed, len(ids))
        for length in range(min(LONGEST_MATCH, len(ids)), 0, -1):
            if (start := self._continued.get(tuple(ids[-length:]))) is not None:
                period = len(ids) - start
                return [ids[start + at % period] for at in range(count)]
        return []


class Drafter(Decoder, Protocol):
    """What is needed of a model that proposes."""

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows."""
        ...


class DraftModel:
    """Proposes what a smaller model draws, by the same settings, with the row's own numbers.

    It has read of each row the first `_read[i]` tokens. `vocabulary` is how many tokens the large model knows: what the
    draft knows beyond is never proposed, and what it does not know it reads as its last.
    """

    most = MOST_DRAFTED

    def __init__(self, model: Drafter, prompts: Prompts, settings: Settings, vocabulary: int) -> None:
        self.model, self.settings, self.vocabulary = model, settings, vocabulary
        self._limit = most_new(model, prompts.ids.shape[1], settings, "draft")
        self._cache = model.new_cache(len(prompts), margin=self.most)
        source = None if prompts.source is None else self._known(prompts.source)
        known = replace(prompts, ids=self._known(prompts.ids), source=source)
        read(model, known, self._cache, more=settings.max_new_tokens + self.most)
        self._read = [len(row) for row in prompts.rows()]

    def propose(self, rows: Sequence[Row], widths: Sequence[int]) -> Proposal:
        # It may have learned fewer positions than the large model.
        widths = [max(0, min(width, self._limit - row.said)) for row, width in zip(rows, widths)]
        if not max(widths):
            return Proposal([[] for _ in rows])
        device = self._cache.device
        ids, valid = left_padded([row.text[held:] for row, held in zip(rows, self._read)], 0, device)
        histories = [copy(row.history) for row in rows]
        numbers = self._numbers(rows, widths)
        tokens, shares = [], []
        for step in range(max(widths)):
            logits = self._over_all(self.model.next_logits(self._known(ids), self._cache, valid=valid))
            if any(history.ids is not None for history in histories):
                logits = torch.cat([each.adjusted(logits[at : at + 1]) for at, each in enumerate(histories)])
            chosen, valid = self._chosen(logits, None if numbers is None else numbers[:, step], shares), None
            for history, id in zip(histories, chosen):
                history.add(id[None])
            tokens.append(chosen)
            ids = chosen[:, None]
        self._read = [len(row.text) + max(widths) - 1 for row in rows]
        found = [row[:width] for row, width in zip(torch.stack(tokens, 1).tolist(), widths)]
        return Proposal(found, torch.stack(shares, 1) if shares else None)

    def settle(self, rows: Sequence[Row], kept: Sequence[int]) -> None:
        if len(kept) < len(self._read):
            self._cache.reorder(torch.tensor(kept, device=self._cache.device))
        held = [self._read[at] for at in kept]
        self._read = [min(read, len(row.text) - 1) for read, row in zip(held, rows)]
        if self._read != held:
            self._cache.truncate(self._read)

    def _known(self, ids: Tensor) -> Tensor:
        return ids.clamp(max=self.model.vocabulary - 1)

    def _over_all(self, logits_BV: Tensor) -> Tensor:
        """Logits over the large model's vocabulary. Where one of the two is padded, the padding is impossible."""
        lacks = self.vocabulary - logits_BV.shape[1]
        return torch.nn.functional.pad(logits_BV, (0, lacks), value=-torch.inf)

    def _numbers(self, rows: Sequence[Row], widths: Sequence[int]) -> Tensor | None:
        """Of each row as many numbers as tokens are proposed to it, [B, K]; None where nothing is drawn."""
        if self.settings.temperature == 0:
            return None
        drawn = [row.uniform(width) if width else torch.ones(0) for row, width in zip(rows, widths)]
        return torch.nn.utils.rnn.pad_sequence(drawn, batch_first=True, padding_value=1.0)

    def _chosen(self, logits_BV: Tensor, numbers_B: Tensor | None, shares: list[Tensor]) -> Tensor:
        """The next token of each row, [B]; what it was drawn from is added to `shares`."""
        if numbers_B is None:
            return likeliest(logits_BV)
        shares.append(distribution(logits_BV.float(), self.settings))
        return drawn(shares[-1], numbers_B)
