"""What is penalised, and by how much."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    ExponentialDecayLengthPenalty,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from anyformer.errors import InputError
from anyformer.generation import Prompts, Settings, left_padded
from anyformer.generation.penalties import Said, hastened, penalized, unrepeated, without


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_is_penalised_as_in_the_reference(penalty: float) -> None:
    """Positive logits divided, negative multiplied, once each however often an id was seen."""
    torch.manual_seed(0)
    logits, seen = torch.randn(3, 20), torch.randint(0, 20, (3, 15))
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
    assert torch.equal(penalized(logits, seen, penalty), wanted)
    assert torch.equal(Said(Settings(repetition_penalty=penalty), Prompts(seen)).adjusted(logits), wanted)


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (0.7, -0.4), (-2.0, 2.0)])
def test_what_was_answered_is_penalised_by_its_count_and_for_being_there(frequency: float, presence: float) -> None:
    """OpenAI's definition in plain Python: each id's logit minus count x frequency, minus presence if there is any. The
    prompt does not count, wherever its padding stands."""
    draw = random.Random(0)
    settings = Settings(frequency_penalty=frequency, presence_penalty=presence)
    prompt, logits = torch.tensor([[3, 4, 5], [9, 6, 3]]), torch.randn(2, 8)
    said = Said(settings, Prompts(prompt, torch.tensor([[True] * 3, [False, True, True]])))
    answers: list[list[int]] = [[], []]
    for _ in range(20):
        wanted = logits.clone()
        for row, answer in enumerate(answers):
            for token, count in Counter(answer).items():
                wanted[row, token] -= count * frequency + presence
        assert torch.allclose(said.adjusted(logits), wanted, atol=1e-5)
        new = [draw.randrange(8) for _ in answers]
        for answer, token in zip(answers, new, strict=True):
            answer.append(token)
        said.add(torch.tensor(new))


def test_nothing_is_kept_where_nothing_is_asked() -> None:
    """Plain decoding notes nothing and changes nothing."""
    said, logits = Said(Settings(), Prompts(torch.tensor([[1, 2]]))), torch.randn(1, 5)
    said.add(torch.tensor([1]))
    assert said.ids is None and said.adjusted(logits) is logits


def test_bad_words_are_banned_as_in_the_reference() -> None:
    """Single ids and sequences, longer ones than what was said among them; and ids of no vocabulary harm nothing."""
    draw = random.Random(0)
    for _ in range(100):
        words = [[draw.randrange(6) for _ in range(draw.randint(1, 4))] for _ in range(4)]
        logits, seen = torch.randn(3, 6), torch.tensor([[draw.randrange(6) for _ in range(3)] for _ in range(3)])
        wanted = NoBadWordsLogitsProcessor(words)(seen, logits.clone())
        found = without(logits, seen, [*words, [9], [seen[0, -1].item(), 77]])
        assert torch.equal(found.isneginf(), wanted.isneginf())
        assert torch.equal(found[~found.isneginf()], logits[~found.isneginf()])
    unsaid = torch.tensor([[-1, -1, 4]])
    assert not without(torch.zeros(1, 6), unsaid, [(4, 4, 5)]).isneginf().any()
    said = Said(Settings(bad_words=((1,),)), Prompts(unsaid, unsaid >= 0))
    assert said.adjusted(torch.tensor([[0.0, 2.0, 1.0]])).argmax(-1).tolist() == [2]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_runs_are_not_repeated_as_in_the_reference(n: int) -> None:
    """Of few ids, so that most runs come again; longer ones than what was said; and padding is no part of a run."""
    torch.manual_seed(n)
    for T in range(1, 12):
        logits, seen = torch.randn(4, 6), torch.randint(0, 3, (4, T))
        wanted = NoRepeatNGramLogitsProcessor(n)(seen, logits.clone())
        assert torch.equal(unrepeated(logits, seen, seen, n), wanted)
        padded = torch.cat((torch.full((4, 5), -1), seen), 1)
        assert torch.equal(unrepeated(logits, padded, padded, n), wanted)


def test_an_answer_is_not_over_too_soon() -> None:
    """The longer of both bounds, by what each row has said itself; and rows keep theirs where they are reordered."""
    settings = Settings(min_length=5, min_new_tokens=1, eos=(0, 3))
    valid = torch.tensor([[True] * 3, [False, False, True]])
    said = Said(settings, Prompts(torch.tensor([[1, 1, 1], [9, 9, 1]]), valid))
    said.reorder([1, 0])
    soonest = []
    for _ in range(6):
        soonest.append(said.adjusted(torch.zeros(2, 5)).isneginf().tolist())
        said.add(torch.tensor([1, 1]))
    both, none = [True, False, False, True, False], [False] * 5
    assert [first for first, _ in soonest] == [both] * 4 + [none] * 2
    assert [second for _, second in soonest] == [both] * 2 + [none] * 4


def reference(settings: Settings, prompt: Tensor, source: Tensor) -> list[Any]:
    """transformers' processors for the settings, in the order in which it applies them."""
    eos, length = torch.tensor(settings.eos), prompt.shape[1]
    begin = length + (length == 1 and settings.forced_bos is not None)
    asked: list[Any] = [RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)]
    if settings.no_repeat_ngram:
        asked.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram))
    if settings.encoder_no_repeat_ngram:
        asked.append(EncoderNoRepeatNGramLogitsProcessor(settings.encoder_no_repeat_ngram, source))  # type: ignore[arg-type]
    if settings.bad_words:
        asked.append(NoBadWordsLogitsProcessor([[*word] for word in settings.bad_words], eos))
    asked.append(MinLengthLogitsProcessor(settings.min_length, eos))
    asked.append(MinNewTokensLengthLogitsProcessor(length, settings.min_new_tokens, eos))
    if settings.exponential_decay is not None:
        asked.append(ExponentialDecayLengthPenalty(settings.exponential_decay, eos, length))  # type: ignore[arg-type]
    return [
        *asked,
        SuppressTokensLogitsProcessor(settings.suppress),
        SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress, begin),
    ]


@hypothesis.settings(max_examples=80, deadline=None)
@given(st.data())
def test_all_together_are_what_they_are_in_the_reference(data: st.DataObject) -> None:
    """Any settings at once, over answers as they grow: scores as transformers' processors make them one after another,
    of a decoder and beside a source, alone and padded."""
    id, n = st.integers(0, 6), st.integers(0, 3)
    ids = st.lists(id, max_size=3).map(tuple)
    chosen = Settings(
        eos=data.draw(st.lists(id, min_size=1, max_size=2, unique=True).map(tuple)),
        repetition_penalty=data.draw(st.sampled_from([0.7, 1.0, 1.5])),
        bad_words=tuple(data.draw(st.lists(st.lists(id, min_size=1, max_size=3).map(tuple), max_size=3))),
        suppress=data.draw(ids),
        begin_suppress=data.draw(ids),
        no_repeat_ngram=data.draw(n),
        encoder_no_repeat_ngram=data.draw(n),
        min_new_tokens=data.draw(n),
        min_length=data.draw(st.integers(0, 7)),
        exponential_decay=data.draw(st.none() | st.tuples(n, st.sampled_from([0.5, 1.1, 2.0]))),
        forced_bos=data.draw(st.none() | id),
    )
    rows = [data.draw(st.lists(id, min_size=1, max_size=5)) for _ in range(2)]
    sources = [data.draw(st.lists(id, min_size=1, max_size=5)) for _ in rows] if data.draw(st.booleans()) else None
    together = Prompts(*left_padded(rows, 0, "cpu"))
    if sources is not None:
        together = Prompts(together.ids, together.valid, *left_padded(sources, 0, "cpu"))
    said, answer = Said(chosen, together), torch.zeros(2, 0, dtype=torch.long)
    for _ in range(5):
        logits = torch.tensor(data.draw(st.lists(st.floats(-9, 9, width=32), min_size=7, max_size=7))).repeat(2, 1)
        found = said.adjusted(logits)
        for at, row in enumerate(torch.tensor([row]) for row in rows):
            source = row if sources is None else torch.tensor([sources[at]])
            wanted = logits[at : at + 1]
            for each in reference(chosen, row, source):
                wanted = each(torch.cat((row, answer[at : at + 1]), 1), wanted)
            torch.testing.assert_close(found[at : at + 1], wanted)
        new = torch.tensor(data.draw(st.lists(id, min_size=2, max_size=2)))
        answer = torch.cat((answer, new[:, None]), 1)
        said.add(new)


def test_what_is_not_copied_may_be_no_token_of_an_answer() -> None:
    """A source has ids of its own vocabulary; those beyond the answer's forbid nothing, and are looked up nowhere."""
    source = torch.tensor([[1, 2, 99, 2, 3]])
    assert unrepeated(torch.zeros(1, 5), torch.tensor([[2]]), source, 2).isneginf().tolist() == [
        [False, False, False, True, False]
    ]


def test_an_ending_that_is_long_overdue_stays_a_number() -> None:
    """However many tokens it has grown for; what is impossible stays so."""
    for logit in (-3.0, 3.0, 0.0):
        found = hastened(torch.tensor([[logit, 1.0, -torch.inf]]), 5000, (0, 2), 3, 1000.0)
        assert bool(found[0, :2].isfinite().all()) and found[0, 1:].tolist() == [1.0, -torch.inf]
        assert bool(found[0, 0] >= logit)


def test_a_dead_end_is_said_and_looked_for_only_where_there_may_be_one() -> None:
    """Where bans leave nothing, which of them; where the vocabulary is larger than all they could ban, no score is
    looked at."""
    chosen = Settings(bad_words=((0, 1), (2,)), no_repeat_ngram=1, min_new_tokens=2, eos=(3,))
    said = Said(chosen, Prompts(torch.tensor([[0]])))
    said.must_go_on(torch.tensor([[-torch.inf, 0.0]]), False)
    sentence = "^an answer of 0 tokens cannot go on: bad_words, no_repeat_ngram and min_new_tokens leave it no token"
    with pytest.raises(InputError, match=sentence):
        said.must_go_on(torch.full((1, 4), -torch.inf), False)
    said.must_go_on(torch.full((1, 9), -torch.inf), False)
    with pytest.raises(
        InputError, match="no_repeat_ngram, min_new_tokens and the constraint leave it no token; take some of"
    ):
        said.must_go_on(torch.full((1, 9), -torch.inf), True)
