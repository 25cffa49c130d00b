"""Contrastive search: what it writes is what its definition without a cache writes."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from odd_specs import odd_model
from torch import Tensor
from torch.nn.functional import cosine_similarity

from anyformer import families
from anyformer.generation import Prompts, Settings, left_padded
from anyformer.generation.contrastive import contrastive_search, worth
from anyformer.model import Transformer, build

VOCABULARY = 37


def odd(seed: int, shape: str = "decoder") -> Transformer:
    """A random model in float64, in evaluation mode."""
    return build(odd_model(random.Random(f"{seed} {shape}"), shape), dtype=torch.float64, seed=seed).eval()


@torch.no_grad()
def defined(
    model: Transformer, prompt: list[int], most: int, alpha: float, K: int, source: Tensor | None, eos: int
) -> list[int]:
    """The definition, read anew for every candidate of every token."""
    ids = list(prompt)
    while len(ids) - len(prompt) < most:
        shares = model(torch.tensor([ids]), source=source).logits[0, -1].softmax(-1)
        scored = []
        for share, token in zip(*(each.tolist() for each in shares.topk(K)), strict=True):
            hidden = model(torch.tensor([[*ids, token]]), source=source).hidden[0]
            alike = max(cosine_similarity(hidden[-1:], hidden[:-1]).tolist())
            scored.append(((1 - alpha) * share - alpha * alike, token))
        ids.append(max(scored)[1])
        if ids[-1] == eos:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("shape", ["decoder", "encoder-decoder"])
def test_it_is_its_definition_whatever_shares_the_batch(shape: str) -> None:
    """Random models with rings, ALiBi, experts ..., ragged batches of which some rows end early: each row is what the
    definition gives for it alone, which is not what greedy gives."""
    differs = 0
    for seed in range(3):
        model, draw = odd(seed, shape), random.Random(seed)
        rows = [[draw.randrange(VOCABULARY) for _ in range(draw.randint(1, 9))] for _ in range(3)]
        K, alpha = draw.randint(2, 5), draw.choice([0.2, 0.6, 0.9])

        def wanted(row: list[int], eos: int = -1) -> list[int]:
            source = None if model.encoder is None else torch.tensor([row])  # noqa: B023
            prompt = row if source is None else [5]
            return defined(model, prompt, 7, alpha, K, source, eos)  # noqa: B023

        eos = wanted(rows[0])[3]
        alone = [wanted(row, eos) for row in rows]
        ids, valid = left_padded(rows, 0, "cpu")
        how: dict[str, Any] = {"max_new_tokens": 7, "start": 5, "eos": eos, "pad": 36}
        found = model.generate(ids, valid=valid, penalty_alpha=alpha, top_k=K, **how).tolist()
        longest = max(map(len, alone))
        assert found == [row + [36] * (longest - len(row)) for row in alone]
        differs += found != model.generate(ids, valid=valid, **how).tolist()
    assert differs


def test_what_is_impossible_is_not_chosen_for_being_new() -> None:
    """A candidate without probability loses, however little it is like what stands there."""
    shares, before = torch.tensor([[0.1, 0.0]]), torch.tensor([[[1.0, 0.0]]])
    states = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    assert worth(shares, states, before, None, 0.9).tolist() == [[pytest.approx(0.01 - 0.9), -torch.inf]]
    model = odd(1)
    every = tuple((token,) for token in range(VOCABULARY) if token != 7)
    found = model.generate(torch.tensor([[1, 2]]), penalty_alpha=0.9, top_k=5, bad_words=every, max_new_tokens=4)
    assert found.tolist() == [[7, 7, 7, 7]]


def test_without_a_penalty_it_is_greedy_and_one_candidate_is_too() -> None:
    """Nearly no α, or the likeliest alone."""
    for seed in range(3):
        model, ids = odd(seed), torch.tensor([[1, 2, 3], [4, 5, 6]])
        greedy = model.generate(ids, max_new_tokens=6)
        assert torch.equal(model.generate(ids, penalty_alpha=1e-9, top_k=5, max_new_tokens=6), greedy)
        assert torch.equal(model.generate(ids, penalty_alpha=0.9, top_k=1, max_new_tokens=6), greedy)


def test_the_prompt_is_read_once() -> None:
    """Then each step is one pass over the candidates of all rows."""
    model, calls = odd(0), []
    forward = model.next_states

    def counted(tokens: Tensor, *args: Any, **how: Any) -> tuple[Tensor, Tensor]:
        calls.append(list(tokens.shape))
        return forward(tokens, *args, **how)

    model.next_states = counted  # type: ignore[method-assign]
    list(contrastive_search(model, Prompts(torch.ones(2, 5, dtype=torch.long)), Settings(penalty_alpha=0.5, top_k=3)))
    assert calls == [[2, 5], *[[6, 1]] * 64]


def test_the_last_learned_position_predicts_one_token_more() -> None:
    """As it does in greedy: there nothing can be looked at, and the likeliest token is taken."""
    described = families.gpt2("tiny", n_positions=8)  # type: ignore[attr-defined]
    model = build(described, seed=1).eval()
    how = {"penalty_alpha": 0.6, "top_k": 4, "max_new_tokens": 50}
    assert model.generate(torch.ones(1, 5, dtype=torch.long), **how).shape == (1, 4)
    assert model.generate(torch.ones(1, 8, dtype=torch.long), **how).shape == (1, 1)
