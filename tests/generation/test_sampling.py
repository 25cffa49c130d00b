"""From logits to the next token: the distributions, and the draws."""

from __future__ import annotations

import math
import random

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from anyformer.generation import Settings
from anyformer.generation.sampling import distribution, next_token, penalized, without


def plainly(logits: list[float], settings: Settings) -> list[float]:
    """Temperature, k likeliest, the fewest that hold p, those near the likeliest, in that order, in plain Python."""
    scaled = [logit / settings.temperature for logit in logits]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = order[: settings.top_k] if settings.top_k else order

    def shares(of: list[int]) -> dict[int, float]:
        total = sum(math.exp(scaled[i]) for i in of)
        return {i: math.exp(scaled[i]) / total for i in of}

    held, nucleus, all_shares = 0.0, [], shares(kept)
    for i in kept:
        if held >= settings.top_p and settings.top_p < 1:
            break
        nucleus.append(i)
        held += all_shares[i]
    inside = shares(nucleus)
    final = shares([i for i in nucleus if inside[i] >= settings.min_p * max(inside.values())])
    return [final.get(i, 0.0) for i in range(len(logits))]


def drawn_settings(draw: random.Random) -> Settings:
    return Settings(
        temperature=draw.choice([0.3, 1.0, 2.5]),
        top_k=draw.choice([0, 1, 3, 8, 100]),
        top_p=draw.choice([1.0, 0.9, 0.5, 0.05]),
        min_p=draw.choice([0.0, 0.05, 0.5, 1.0]),
    )


def test_distributions_are_what_plain_python_says() -> None:
    """300 random rows x settings."""
    for seed in range(300):
        draw = random.Random(seed)
        settings = drawn_settings(draw)
        rows = [[draw.gauss(0, 3) for _ in range(12)] for _ in range(2)]
        found = distribution(torch.tensor(rows, dtype=torch.float64), settings)
        for row, wanted in zip(found.tolist(), (plainly(row, settings) for row in rows), strict=True):
            assert row == pytest.approx(wanted, abs=1e-9), settings


def test_distributions_are_those_of_the_reference() -> None:
    """The same settings through transformers' warpers, in its order."""
    for seed in range(100):
        draw = random.Random(seed)
        settings = drawn_settings(draw)
        torch.manual_seed(seed)
        logits = torch.randn(3, 40) * 3
        wanted = TemperatureLogitsWarper(settings.temperature)(None, logits)
        if settings.top_k:
            wanted = TopKLogitsWarper(settings.top_k)(None, wanted)
        if settings.top_p < 1:
            wanted = TopPLogitsWarper(settings.top_p)(None, wanted)
        if settings.min_p:
            wanted = MinPLogitsWarper(settings.min_p)(None, wanted)
        assert torch.allclose(distribution(logits, settings), wanted.softmax(-1), atol=1e-6), settings


@pytest.mark.parametrize("penalty", [0.7, 1.3, 5.0])
def test_repetition_is_penalised_as_in_the_reference(penalty: float) -> None:
    """Positive logits divided, negative multiplied, once each however often an id was seen."""
    torch.manual_seed(0)
    logits, seen = torch.randn(3, 20), torch.randint(0, 20, (3, 15))
    wanted = RepetitionPenaltyLogitsProcessor(penalty)(seen, logits.clone())
    assert torch.equal(penalized(logits, seen, penalty), wanted)
    with_penalty = next_token(logits, Settings(repetition_penalty=penalty), seen, None)
    assert torch.equal(with_penalty, wanted.argmax(-1))


def test_draws_follow_the_distribution() -> None:
    """20,000 draws from a row of eight: Pearson's chi-square below its 99.99th percentile, and what has no probability
    is never drawn."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -0.5, -1.0, -2.0, -4.0]])
    for settings, free in ((Settings(temperature=1.0), 7), (Settings(temperature=0.8, top_k=5, top_p=0.95), 3)):
        shares = distribution(logits, settings)[0]
        generator = torch.Generator().manual_seed(0)
        drawn = next_token(logits.expand(20_000, 8), settings, None, generator)
        counts = torch.bincount(drawn, minlength=8).double()
        possible = shares > 0
        assert not counts[~possible].any() and int(possible.sum()) == free + 1
        expected = shares[possible].double() * 20_000
        statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
        assert statistic < {7: 29.88, 3: 21.11}[free]


def test_greedy_takes_the_likeliest_and_ties_go_to_the_first() -> None:
    """Without touching any generator."""
    before = torch.get_rng_state()
    logits = torch.tensor([[0.0, 3.0, 3.0], [5.0, 1.0, 2.0]])
    assert next_token(logits, Settings(), None, None).tolist() == [1, 0]
    assert torch.equal(torch.get_rng_state(), before)


def test_extreme_settings_are_greedy() -> None:
    """One token, or almost no probability, or a temperature near zero: always the likeliest."""
    torch.manual_seed(0)
    logits = torch.randn(50, 30) * 3
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-4}):
        settings = Settings(**({"temperature": 1.0} | narrow))
        assert torch.equal(next_token(logits, settings, None, None), logits.argmax(-1))


def test_a_temperature_near_nothing_is_no_nan() -> None:
    """Logits over 1e-30 are beyond float32; what comes out is still the likeliest."""
    logits = torch.tensor([[1.0, 5.0, -3.0], [0.5, 0.25, 0.0]])
    assert next_token(logits, Settings(temperature=1e-40), None, None).tolist() == [1, 0]
    assert next_token(logits.bfloat16(), Settings(temperature=1e-30, top_p=0.5), None, None).tolist() == [1, 0]


def test_a_seeded_generator_repeats_its_draws() -> None:
    """And leaves torch's own alone."""
    logits, settings = torch.zeros(5, 100), Settings(temperature=1.0)
    before = torch.get_rng_state()
    one, other = (next_token(logits, settings, None, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, other) and torch.equal(torch.get_rng_state(), before)


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
    assert next_token(torch.tensor([[0.0, 2.0, 1.0]]), Settings(bad_words=((1,),)), unsaid, None).tolist() == [2]
