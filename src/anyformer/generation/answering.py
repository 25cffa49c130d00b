"""From a prompt to its answers, whichever way the settings choose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from anyformer.errors import InputError
from anyformer.generation.answer import Answer, Token
from anyformer.generation.beam import Hypothesis, search
from anyformer.generation.constraints import Constraint, constraint_of
from anyformer.generation.contrastive import Thinker, contrastive_search
from anyformer.generation.decoding import Step, choices
from anyformer.generation.drafting import Drafter
from anyformer.generation.invariance import Begun, groups, of_rows, side_by_side
from anyformer.generation.sampling import seeds_of
from anyformer.generation.settings import Settings
from anyformer.generation.speculation import Tally, Verifier, speculate
from anyformer.generation.stopping import Writing, written
from anyformer.parts.cache import Cache
from anyformer.text import Tokenizer


class Speaker(Thinker, Verifier, Protocol):
    """What all ways of decoding together need of a model."""


def decode(
    model: Speaker,
    settings: Settings,
    tokenizer: Tokenizer | None,
    *,
    cache: Cache | None = None,
    draft: Drafter | None = None,
    tally: Tally | None = None,
    past: Sequence[int] = (),
    **begun: Any,
) -> Iterator[Step]:
    """The steps of `settings.answers` answers to each prompt: those of `choices`, of `speculate` (with a `draft`, or by
    prompt lookup, also in the `past` that a cache has read), or of `contrastive_search`. `begun` is what they begin
    with. Raises `InputError` where a cache is given that cannot be continued."""
    rows = len(begun["prompt"]) * settings.answers
    constraint = constraint_of(settings, tokenizer, rows)
    ways = {"draft": draft, "tally": tally, "past": past}
    if not settings.batch_invariant:
        return _decode(model, settings, constraint, cache, **ways, **begun)
    if cache is None:
        return _apart(model, settings, constraint, **ways, **_each(begun, settings.answers))
    if rows > 1:
        raise InputError("rows of one cache depend on each other; continue one at a time, or leave batch_invariant out")
    return _decode(model, settings, constraint, cache, **ways, **begun)


def _apart(model: Speaker, settings: Settings, constraint: Constraint | None, **given: Any) -> Iterator[Step]:
    """The steps of one answer to each prompt, in groups whose rows do not depend on each other."""
    ways = {name: given.pop(name) for name in ("draft", "tally", "past")}
    alone = ways["draft"] is not None or settings.prompt_lookup > 0 or settings.penalty_alpha > 0
    together, seeds = groups(model, settings, given, alone=alone), seeds_of(settings.seed, len(given["prompt"]))
    runs = []
    for rows in together:
        own = settings.model_copy(update={"answers": 1, "seed": tuple(seeds[row] for row in rows)})
        its = None if constraint is None else constraint.of_rows(rows)
        runs.append(_decode(model, own, its, None, **ways, **of_rows(given, rows)))
    return side_by_side(runs, together, settings.filler)


def _each(begun: Begun, times: int) -> dict[str, Any]:
    """What decoding begins with, of each prompt so many times."""
    return {name: None if each is None else each.repeat_interleave(times, 0) for name, each in begun.items()}


def _decode(
    model: Speaker,
    settings: Settings,
    constraint: Constraint | None,
    cache: Cache | None,
    *,
    draft: Drafter | None,
    tally: Tally | None,
    past: Sequence[int],
    **begun: Any,
) -> Iterator[Step]:
    """The steps of one batch."""
    draws = settings.answers
    if draft is not None or settings.prompt_lookup:
        speculation = {"draft": draft, "tally": tally, "past": past}
        begun = _each(begun, draws)
        return speculate(model, settings=settings, cache=cache, constraint=constraint, **speculation, **begun)
    if settings.penalty_alpha > 0:
        if cache is not None:
            raise InputError("contrastive search continues no cache; set penalty_alpha=0")
        return contrastive_search(model, settings=settings, constraint=constraint, **begun)
    return choices(model, settings=settings, cache=cache, constraint=constraint, draws=draws, **begun)


def answers(model: Speaker, settings: Settings, tokenizer: Tokenizer | None, **begun: Any) -> list[Answer]:
    """What is answered to each prompt; of beam search the `settings.answers` best, empty ones where it finds fewer."""
    if settings.beams > 1:
        return _searched(model, settings, tokenizer, **begun)
    rows = [Writing(settings, tokenizer) for _ in range(len(begun["prompt"]) * settings.answers)]
    tokens: list[list[Token]] = [[] for _ in rows]
    for step in decode(model, settings, tokenizer, **begun):
        for index, (row, said, token) in enumerate(zip(rows, tokens, weighed(step, settings.logprobs))):
            if row.reason is None and index not in step.over:
                row.push(token.id)
                said.append(token)
        if all(row.reason for row in rows):
            break
    for row in rows:
        row.finish()
    scores = [sum(token.logprob for token in said) / len(said) ** settings.length_penalty for said in tokens]
    return [_answer(row, said, score) for row, said, score in zip(rows, tokens, scores)]


def _searched(model: Speaker, settings: Settings, tokenizer: Tokenizer | None, **begun: Any) -> list[Answer]:
    answers = []
    for found in _searches(model, settings, tokenizer, **begun):
        answers += [_answer(written(each.ids, settings, tokenizer), each.tokens, each.score) for each in found]
        answers += [Answer("", (), "length", -math.inf)] * (settings.answers - len(found))
    return answers


def _searches(
    model: Speaker, settings: Settings, tokenizer: Tokenizer | None, **begun: Any
) -> Sequence[list[Hypothesis]]:
    """What is found for each prompt."""
    count = len(begun["prompt"])
    constraint = constraint_of(settings.model_copy(update={"answers": 1}), tokenizer, count)
    if not settings.batch_invariant:
        return search(model, settings=settings, tokenizer=tokenizer, constraint=constraint, **begun)
    found: dict[int, list[Hypothesis]] = {}
    for rows in groups(model, settings, begun):
        own = None if constraint is None else constraint.of_rows(rows)
        its = search(model, settings=settings, tokenizer=tokenizer, constraint=own, **of_rows(begun, rows))
        found.update(zip(rows, its))
    return [found[row] for row in range(count)]


def _answer(row: Writing, tokens: Sequence[Token], score: float) -> Answer:
    assert row.reason is not None
    return Answer(row.text, tuple(tokens), row.reason, score)


def stream(
    model: Speaker, settings: Settings, tokenizer: Tokenizer, *, cache: Cache | None = None, **begun: Any
) -> Iterator[list[str]]:
    """What each step adds to each row's text, often nothing to some."""
    if settings.beams > 1:
        if cache is not None:
            raise InputError("beam search continues no cache; set beams=1")
        yield [answer.text or "" for answer in answers(model, settings, tokenizer, **begun)]
        return
    rows = [Writing(settings, tokenizer) for _ in range(len(begun["prompt"]) * settings.answers)]
    for step in decode(model, settings, tokenizer, cache=cache, **begun):
        going = [row.reason is None and index not in step.over for index, row in enumerate(rows)]
        yield [row.push(id) if goes else "" for row, id, goes in zip(rows, step.ids_B.tolist(), going)]
        if all(row.reason for row in rows):
            return
    yield [row.finish() for row in rows]


def weighed(step: Step, likeliest: int) -> list[Token]:
    """What a step has chosen, with its log-probability, and so many of the likeliest."""
    logits = step.logits_BV.float()
    total = logits.logsumexp(-1, keepdim=True)
    # What fills up after an end may be no id of the vocabulary.
    ids = step.ids_B.clamp(max=logits.shape[-1] - 1)
    chosen = (logits.gather(1, ids[:, None]) - total)[:, 0].tolist()
    pairs: list[tuple[tuple[int, float], ...]] = [()] * len(chosen)
    if likeliest:
        best, which = logits.topk(min(likeliest, logits.shape[-1]))
        pairs = [tuple(zip(*row)) for row in zip(which.tolist(), (best - total).tolist())]
    return [Token(*token) for token in zip(step.ids_B.tolist(), chosen, pairs)]
