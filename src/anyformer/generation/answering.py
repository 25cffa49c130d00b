"""From a prompt to its answers, whichever way the settings choose."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from anyformer.errors import InputError
from anyformer.generation.answer import Answer, Token
from anyformer.generation.beam import Hypothesis, search
from anyformer.generation.constraints import Constraint, constraint_of
from anyformer.generation.contrastive import Thinker, contrastive_search
from anyformer.generation.decoding import Step, choices
from anyformer.generation.fitting import must_step
from anyformer.generation.invariance import groups, of_one_room, side_by_side
from anyformer.generation.prompts import Prompts
from anyformer.generation.sampling import seeds_of
from anyformer.generation.settings import Settings
from anyformer.generation.speculation import Speculation, Verifier, speculate
from anyformer.generation.stopping import Writing, written
from anyformer.parts.cache import Cache
from anyformer.text import Tokenizer


class Speaker(Thinker, Verifier, Protocol):
    """What all ways of decoding together need of a model."""


def decode(
    model: Speaker,
    prompts: Prompts,
    settings: Settings,
    tokenizer: Tokenizer | None,
    *,
    cache: Cache | None = None,
    speculation: Speculation | None = None,
) -> Iterator[Step]:
    """The steps of `settings.answers` answers to each prompt: those of `choices`, of `speculate` (with a draft, or by
    prompt lookup), or of `contrastive_search`. Raises `InputError` where a cache is given that cannot be continued."""
    prompts, speculation = prompts.checked(), speculation or Speculation()
    must_step(model.spec, prompts.device, len(prompts), prompts.ids.shape[1], settings)
    rows = len(prompts) * settings.answers
    constraint = constraint_of(settings, tokenizer, rows)
    if cache is not None:
        if settings.quantize_cache is not None and not cache.int8:
            raise InputError("the cache to go on from keeps full numbers: new_cache(1, quantize='int8') makes another")
        if settings.batch_invariant and rows > 1:
            raise InputError(
                "rows of one cache depend on each other; continue one at a time, or set no batch_invariant"
            )
        return _decode(model, prompts, settings, speculation, constraint, cache)
    each = prompts.each(settings.answers)
    if settings.batch_invariant:
        alone = speculation.draft is not None or settings.prompt_lookup > 0 or settings.penalty_alpha > 0
        return _apart(model, each, groups(model, settings, each, alone=alone), settings, speculation, constraint)
    if len(found := of_one_room(model, settings, each)) > 1:
        return _apart(model, each, found, settings, speculation, constraint)
    return _decode(model, prompts, settings, speculation, constraint, cache)


def _apart(
    model: Speaker,
    prompts: Prompts,
    together: Sequence[Sequence[int]],
    settings: Settings,
    speculation: Speculation,
    constraint: Constraint | None,
) -> Iterator[Step]:
    """The steps of one answer to each prompt, those in groups by themselves that go `together`."""
    drawn = settings.temperature > 0
    seeds = seeds_of(settings.seed, len(prompts)) if drawn else ()
    runs = []
    for rows in together:
        own = settings.model_copy(update={"answers": 1, "seed": tuple(seeds[row] for row in rows) if drawn else None})
        its = None if constraint is None else constraint.of_rows(rows)
        runs.append(_decode(model, prompts.of_rows(rows), own, speculation, its, None))
    return side_by_side(runs, together, settings.filler)


def _decode(
    model: Speaker,
    prompts: Prompts,
    settings: Settings,
    speculation: Speculation,
    constraint: Constraint | None,
    cache: Cache | None,
) -> Iterator[Step]:
    """The steps of one batch."""
    draws = settings.answers
    if speculation.draft is not None or settings.prompt_lookup:
        return speculate(model, prompts.each(draws), settings, speculation, cache=cache, constraint=constraint)
    if settings.penalty_alpha > 0:
        if cache is not None:
            raise InputError("contrastive search continues no cache; set penalty_alpha=0")
        return contrastive_search(model, prompts, settings, constraint=constraint)
    return choices(model, prompts, settings, cache=cache, constraint=constraint, draws=draws)


def answers(
    model: Speaker,
    prompts: Prompts,
    settings: Settings,
    tokenizer: Tokenizer | None,
    speculation: Speculation | None = None,
) -> list[Answer]:
    """What is answered to each prompt; of beam search the `settings.answers` best, empty ones where it finds fewer."""
    if settings.beams > 1:
        return _searched(model, prompts, settings, tokenizer)
    steps = decode(model, prompts, settings, tokenizer, speculation=speculation)
    rows = [Writing(settings, tokenizer) for _ in range(len(prompts) * settings.answers)]
    tokens: list[list[Token]] = [[] for _ in rows]
    for step in steps:
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


def _searched(model: Speaker, prompts: Prompts, settings: Settings, tokenizer: Tokenizer | None) -> list[Answer]:
    answers = []
    for found in _searches(model, prompts, settings, tokenizer):
        answers += [_answer(written(each.ids, settings, tokenizer), each.tokens, each.score) for each in found]
        answers += [Answer("", (), "length", -math.inf)] * (settings.answers - len(found))
    return answers


def _searches(
    model: Speaker, prompts: Prompts, settings: Settings, tokenizer: Tokenizer | None
) -> Sequence[list[Hypothesis]]:
    """What is found for each prompt."""
    constraint = constraint_of(settings.model_copy(update={"answers": 1}), tokenizer, len(prompts))
    if not settings.batch_invariant:
        return search(model, prompts, settings, tokenizer=tokenizer, constraint=constraint)
    found: dict[int, list[Hypothesis]] = {}
    for rows in groups(model, settings, prompts):
        own = None if constraint is None else constraint.of_rows(rows)
        found.update(zip(rows, search(model, prompts.of_rows(rows), settings, tokenizer=tokenizer, constraint=own)))
    return [found[row] for row in range(len(prompts))]


def _answer(row: Writing, tokens: Sequence[Token], score: float) -> Answer:
    assert row.reason is not None
    return Answer(row.text, tuple(tokens), row.reason, score)


def stream(
    model: Speaker,
    prompts: Prompts,
    settings: Settings,
    tokenizer: Tokenizer,
    *,
    cache: Cache | None = None,
    speculation: Speculation | None = None,
) -> Iterator[list[str]]:
    """What each step adds to each row's text, often nothing to some."""
    if settings.beams > 1:
        if cache is not None:
            raise InputError("beam search continues no cache; set beams=1")
        yield [answer.text or "" for answer in answers(model, prompts, settings, tokenizer)]
        return
    steps = decode(model, prompts, settings, tokenizer, cache=cache, speculation=speculation)
    rows = [Writing(settings, tokenizer) for _ in range(len(prompts) * settings.answers)]
    for step in steps:
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
