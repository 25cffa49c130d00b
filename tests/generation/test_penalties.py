"""What is penalised, and by how much."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from transformers import (
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from anyformer.generation import Settings
from anyformer.generation.penalties import Said, penalized, unrepeated, without


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_is_penalised_as_in_the_reference(penalty: float) -> None:
    """Positive logits divided, negative multiplied, once each however often an id was seen."""
    torch.manual_seed(0)
    logits, seen = torch.randn(3, 20), torch.randint(0, 20, (3, 15))
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
    assert torch.equal(penalized(logits, seen, penalty), wanted)
    assert torch.equal(Said(Settings(repetition_penalty=penalty), seen).adjusted(logits), wanted)


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.0), (0.0, 1.5), (0.7, -0.4), (-2.0, 2.0)])
def test_what_was_answered_is_penalised_by_its_count_and_for_being_there(frequency: float, presence: float) -> None:
    """OpenAI's definition in plain Python: each id's logit minus count x frequency, minus presence if there is any. The
    prompt does not count, wherever its padding stands."""
    draw = random.Random(0)
    settings = Settings(frequency_penalty=frequency, presence_penalty=presence)
    prompt, logits = torch.tensor([[3, 4, 5], [9, 6, 3]]), torch.randn(2, 8)
    said = Said(settings, prompt, torch.tensor([[True] * 3, [False, True, True]]))
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
    said, logits = Said(Settings(), torch.tensor([[1, 2]])), torch.randn(1, 5)
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
    said = Said(Settings(bad_words=((1,),)), unsaid)
    assert said.adjusted(torch.tensor([[0.0, 2.0, 1.0]])).argmax(-1).tolist() == [2]


@pytest.mark.parametrize("n", [1, 2, 3, 9])
def test_runs_are_not_repeated_as_in_the_reference(n: int) -> None:
    """Of few ids, so that most runs come again; longer ones than what was said; and padding is no part of a run."""
    torch.manual_seed(n)
    for T in range(1, 12):
        logits, seen = torch.randn(4, 6), torch.randint(0, 3, (4, T))
        wanted = NoRepeatNGramLogitsProcessor(n)(seen, logits.clone())
        assert torch.equal(unrepeated(logits, seen, n), wanted)
        padded = torch.cat((torch.full((4, 5), -1), seen), 1)
        assert torch.equal(unrepeated(logits, padded, n), wanted)


def test_an_answer_is_not_over_too_soon() -> None:
    """The longer of both bounds, by what each row has said itself; and rows keep theirs where they are reordered."""
    settings = Settings(min_length=5, min_new_tokens=1, eos=(0, 3))
    said = Said(settings, torch.tensor([[1, 1, 1], [9, 9, 1]]), torch.tensor([[True] * 3, [False, False, True]]))
    said.reorder([1, 0])
    soonest = []
    for _ in range(6):
        soonest.append(said.adjusted(torch.zeros(2, 5)).isneginf().tolist())
        said.add(torch.tensor([1, 1]))
    both, none = [True, False, False, True, False], [False] * 5
    assert [first for first, _ in soonest] == [both] * 4 + [none] * 2
    assert [second for _, second in soonest] == [both] * 2 + [none] * 4
