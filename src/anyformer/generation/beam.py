"""Beam search: the likeliest answers as a whole, where greedy takes the likeliest token one at a time.

Of each prompt, K beams run side by side as K rows of the batch. A step looks at all their continuations and lets the K
likeliest run on; one that ends is put aside as an answer. Prompts and sources are read once, not K times.

    beams, scores       continuations                       K = 2
      the cat  -1.1       the cat sat  -1.6      runs on
      the dog  -1.4       the cat .    -1.9      an answer, with its score divided by its length
                          the dog ran  -2.2      runs on

A beam keeps its row of the cache as long as any of its continuations runs on, so that between two steps only rows
are copied whose beam was given up; and a search that is over leaves the batch.

With `beam_groups`, a prompt has so many searches, K / groups wide, that take turns within a step: each finds less
likely what those before it have just said (Vijayakumar et al. 2018, "Diverse Beam Search", algorithm 1, with Hamming
diversity).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.generation.answer import Token
from anyformer.generation.decoding import Constraint, Decoder, begin, most_new
from anyformer.generation.fitting import must_step
from anyformer.generation.penalties import Said, leaving_none
from anyformer.generation.prompts import Prompts
from anyformer.generation.settings import Settings
from anyformer.generation.stopping import written
from anyformer.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """New tokens, an end token included where there is one, and the score: their summed log-probability in nats, with
    what penalties made of it, divided by their number to the power of `length_penalty`."""

    tokens: list[Token]
    score: float

    @property
    def ids(self) -> list[int]:
        """The ids of the tokens."""
        return [token.id for token in self.tokens]


class Candidate(NamedTuple):
    """A beam that could go on with a token: the score of both together, and the token's own log-probability."""

    score: float
    beam: int
    token: int
    logprob: float


class Search:
    """A search for answers to one prompt, at most `most` tokens long, which has its turn after those `before` it: what
    its beams have said, the score of each, and the answers so far."""

    def __init__(
        self,
        settings: Settings,
        most: int,
        tokenizer: Tokenizer | None = None,
        before: Sequence[Search] = (),
    ) -> None:
        self.settings, self.most, self.tokenizer, self.before = settings, most, tokenizer, before
        self.width = settings.beams // settings.beam_groups
        self.beams: list[list[Token]] = [[] for _ in range(self.width)]
        # All begin alike: but for one, they would only say the same again.
        self.scores = [0.0] + [-math.inf] * (self.width - 1)
        self.answers: list[Hypothesis] = []
        #: What its likeliest continuations that do not end say in this step, whether they run on or not.
        self.said: list[int] = []

    @property
    def length(self) -> int:
        """How many tokens each beam has said."""
        return len(self.beams[0])

    @property
    def is_last(self) -> bool:
        """Whether there is room for one token more and no other."""
        return self.length + 1 == self.most

    def step(self, candidates: Sequence[Candidate], likeliest: Sequence[tuple[tuple[int, float], ...]]) -> list[int]:
        """Go on with the best of `candidates`, which stand in order, the best first; which beam each one now continues.
        `likeliest` are those of `Token`, of each beam."""
        going: list[Candidate] = []
        ending: list[Candidate] = []
        for rank, candidate in enumerate(candidates):
            if not self._ends(candidate):
                going.append(candidate)
            elif rank < self.width:
                ending.append(candidate)
        going = [candidate for candidate in going if candidate.score > -math.inf][: self.width]
        self.said = [candidate.token for candidate in going]
        if self.is_last:
            ending, going = list(candidates[: self.width]), []
        for candidate in ending:
            if candidate.score > -math.inf:
                self._answer(self._continued(candidate, likeliest), candidate.score)
        # Where a small vocabulary or a forced token leaves fewer, what fills up can never win.
        over = (*self.settings.eos, self.settings.filler)[0]
        filler = Candidate(-math.inf, 0, over, -math.inf)
        going = _at_home(going + [filler] * (self.width - len(going)))
        self.beams = [self._continued(candidate, likeliest) for candidate in going]
        self.scores = [candidate.score for candidate in going]
        return [candidate.beam for candidate in going]

    def is_over(self) -> bool:
        """Whether nothing that may follow counts, by `early_stopping`."""
        if self.length == self.most or max(self.scores) == -math.inf:
            return True
        if len(self.answers) < self.width:
            return False
        how, penalty = self.settings.early_stopping, self.settings.length_penalty
        length = self.most if how == "never" and penalty > 0 else self.length
        return how is True or max(self.scores) / length**penalty <= self.answers[-1].score

    def _ends(self, candidate: Candidate) -> bool:
        if candidate.token in self.settings.eos:
            return True
        if not self.settings.stop:
            return False
        ids = [*(token.id for token in self.beams[candidate.beam]), candidate.token]
        return written(ids, self.settings, self.tokenizer).reason == "stop"

    def _continued(self, candidate: Candidate, likeliest: Sequence[tuple[tuple[int, float], ...]]) -> list[Token]:
        return [*self.beams[candidate.beam], Token(candidate.token, candidate.logprob, likeliest[candidate.beam])]

    def _answer(self, tokens: list[Token], score: float) -> None:
        self.answers.append(Hypothesis(tokens, score / len(tokens) ** self.settings.length_penalty))
        self.answers = sorted(self.answers, key=lambda answer: -answer.score)[: self.width]


def _at_home(going: Sequence[Candidate]) -> list[Candidate]:
    """The candidates in such an order that the likeliest of each beam's stands in its beam's own place."""
    first = {candidate.beam: index for index, candidate in reversed(list(enumerate(going)))}
    others = iter([index for index, candidate in enumerate(going) if first[candidate.beam] != index])
    return [going[first[place] if place in first else next(others)] for place in range(len(going))]


@torch.no_grad()
def search(
    model: Decoder,
    prompts: Prompts,
    settings: Settings,
    *,
    tokenizer: Tokenizer | None = None,
    constraint: Constraint | None = None,
) -> list[list[Hypothesis]]:
    """The `settings.answers` best answers to each prompt, the best first (Sutskever et al. 2014, section 3.2).

    `tokenizer` finds stop strings. What counts as an answer, and when a search is over, is as in transformers. Raises
    `InputError` where a prompt is longer than the positions that the model has learned.
    """
    prompts, device = prompts.checked(), prompts.device
    lengths = [len(row) for row in prompts.rows()]
    must_step(model.spec, device, len(prompts), max(lengths), settings)
    searches = [_groups(settings, most_new(model, length, settings), tokenizer) for length in lengths]
    running, width = [each for its in searches for each in its], settings.beams // settings.beam_groups
    cache, logits = begin(model, prompts, settings, copies=settings.beams)
    said = Said(settings, prompts)
    side_by_side = torch.arange(len(prompts), device=device).repeat_interleave(settings.beams)
    logits = logits[side_by_side]
    cache.reorder(side_by_side)
    said.reorder(side_by_side)
    if constraint is not None:
        constraint.reorder(side_by_side.tolist())
    begins = [length == 1 for length in lengths for _ in range(settings.beam_groups)]
    forced = [settings.forced(first=first, last=each.is_last) for first, each in zip(begins, running)]
    while True:
        beams = _step(logits, running, forced, said, constraint)
        rows = [[width * index + beam for beam in its] for index, its in enumerate(beams)]
        alive = [index for index, each in enumerate(running) if not each.is_over()]
        if not alive:
            for prompt, its in enumerate(searches):
                if settings.bans and not any(each.answers for each in its):
                    reason = leaving_none(settings, constraint is not None)
                    raise InputError(f"no beam of prompt {prompt + 1} comes to an end: {reason}")
            return [_best(its, settings.answers) for its in searches]
        kept = [row for index in alive for row in rows[index]]
        if len(alive) == len(running):
            moved = [place for place, row in enumerate(kept) if row != place]
            cache.copy(moved, [kept[place] for place in moved])
        else:
            cache.reorder(torch.tensor(kept, device=device))
        running = [running[index] for index in alive]
        forced = [settings.forced(first=False, last=each.is_last) for each in running]
        ids = torch.tensor([beam[-1].id for each in running for beam in each.beams], device=device)
        said.reorder(kept)
        said.add(ids)
        if constraint is not None:
            constraint.reorder(kept)
            constraint.advance(ids)
        logits = model.next_logits(ids[:, None], cache)


def _groups(settings: Settings, most: int, tokenizer: Tokenizer | None) -> list[Search]:
    """The searches of one prompt, each of which knows those before it."""
    groups: list[Search] = []
    for _ in range(settings.beam_groups):
        groups.append(Search(settings, most, tokenizer, tuple(groups)))
    return groups


def _best(groups: Sequence[Search], count: int) -> list[Hypothesis]:
    return sorted((answer for each in groups for answer in each.answers), key=lambda answer: -answer.score)[:count]


def _step(
    logits: Tensor,
    running: Sequence[Search],
    forced: Sequence[int | None],
    said: Said,
    constraint: Constraint | None,
) -> list[list[int]]:
    """One step of every search, whose beams' logits are [searches · K, V], the groups in turn; which beam each of its
    beams then continues."""
    plain_NKV = logits.float().log_softmax(-1)
    scores_NKV = said.adjusted(plain_NKV)
    scores_NKV = scores_NKV if constraint is None else constraint.allowed(scores_NKV)
    plain_NKV, scores_NKV = (each.unflatten(0, (len(running), -1)) for each in (plain_NKV, scores_NKV))
    scores_NKV = _with_forced(scores_NKV, forced)
    so_far_NK = torch.tensor([each.scores for each in running], device=logits.device)
    likeliest = _likeliest(plain_NKV, said.settings.logprobs)
    for each in running:
        for search in (*each.before, each):
            search.said = []
    beams: list[list[int]] = [[] for _ in running]
    for turn in range(said.settings.beam_groups):
        its = [index for index, each in enumerate(running) if len(each.before) == turn]
        scores = _of(scores_NKV, its)
        if turn:
            scores = _diversified(scores, [running[index] for index in its], said.settings.diversity_penalty)
        found = _candidates(scores, _of(so_far_NK, its), _of(plain_NKV, its), said.settings)
        for index, candidates in zip(its, found):
            beams[index] = running[index].step(candidates, likeliest[index])
            if forced[index] is not None:
                # What all have to say keeps nobody from saying it.
                running[index].said = []
    return beams


def _of(tensor: Tensor, rows: Sequence[int]) -> Tensor:
    """These rows; without a copy where they are all."""
    return tensor if len(rows) == len(tensor) else tensor[list(rows)]


def _with_forced(scores_NKV: Tensor, forced: Sequence[int | None]) -> Tensor:
    """The scores of tokens where some searches have only one to choose."""
    if any(token is not None for token in forced):
        scores_NKV = scores_NKV.clone()
    for index, token in enumerate(forced):
        if token is not None:
            scores_NKV[index] = -math.inf
            scores_NKV[index, :, token] = 0.0
    return scores_NKV


def _diversified(scores_NKV: Tensor, searches: Sequence[Search], penalty: float) -> Tensor:
    """The scores less the penalty for every time that a search's earlier groups say a token in this step."""
    scores_NKV = scores_NKV.clone()
    for scores_KV, search in zip(scores_NKV, searches):
        for token, count in Counter(token for each in search.before for token in each.said).items():
            scores_KV[:, token] -= penalty * count
    return scores_NKV


def _candidates(scores_NKV: Tensor, so_far_NK: Tensor, plain_NKV: Tensor, settings: Settings) -> list[list[Candidate]]:
    """Of each search, the best continuations of all its beams in order."""
    _, K, V = scores_NKV.shape
    # So many that, whichever of them are end tokens, K go on; none of a beam's others can be among them.
    most = max(2, 1 + len(settings.eos)) * K
    best_NKC, tokens_NKC = scores_NKV.topk(min(most, V))
    C = best_NKC.shape[-1]
    best, where = (best_NKC + so_far_NK[:, :, None]).flatten(1).topk(min(most, K * C))
    logprobs = plain_NKV.gather(2, tokens_NKC).flatten(1).gather(1, where)
    tokens = tokens_NKC.flatten(1).gather(1, where)
    found = zip(best.tolist(), where.tolist(), tokens.tolist(), logprobs.tolist())
    return [[Candidate(score, at // C, token, share) for score, at, token, share in zip(*row)] for row in found]


def _likeliest(plain_NKV: Tensor, count: int) -> list[list[tuple[tuple[int, float], ...]]]:
    """Of each search's beams the likeliest next tokens, with their log-probabilities."""
    N, K, V = plain_NKV.shape
    if not count:
        return [[()] * K for _ in range(N)]
    best, which = plain_NKV.topk(min(count, V))
    return [[tuple(zip(*beam)) for beam in zip(*search)] for search in zip(which.tolist(), best.tolist())]
