"""The reference itself, against loops in plain Python."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor
from who_sees_whom import LAYOUTS, draw_mask, draw_pair, draw_scores, in_plain_python

from anyformer.parts.kernels import Scores, reference
from anyformer.parts.masks import Causal, Tokens, lower


def loops(q: Tensor, k: Tensor, v: Tensor, seen: list[list[list[bool]]], scores: Scores, bias: Tensor) -> list:
    """Attention as one would explain it: for every row, head and query, weigh the keys that it sees."""
    B, H, T, C = q.shape
    group = H // k.shape[1]
    sinks = None if scores.sinks is None else scores.sinks.tolist()
    Q, K, V, added = q.tolist(), k.tolist(), v.tolist(), bias.expand(B, H, T, k.shape[2]).tolist()
    out = []
    for b in range(B):
        for h in range(H):
            for t in range(T):
                keys = [s for s, sees in enumerate(seen[b][t]) if sees]
                logits = {}
                for s in keys:
                    dot = sum(Q[b][h][t][c] * K[b][h // group][s][c] for c in range(C)) * scores.scale
                    cap = scores.soft_cap
                    logits[s] = (dot if cap is None else cap * math.tanh(dot / cap)) + added[b][h][t][s]
                total = sum(math.exp(logit) for logit in logits.values())
                total += 0.0 if sinks is None else math.exp(sinks[h])
                out.append([sum(math.exp(logits[s]) / total * V[b][h // group][s][c] for s in keys) for c in range(C)])
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_is_the_formula(layout: str) -> None:
    """softmax(cap(scale · q·k) + bias) over what is visible, sinks taking their share: 15 random cases a layout."""
    for seed in range(15):
        draw = random.Random(f"{layout} {seed}")
        torch.manual_seed(seed)
        pair, mask = draw_pair(draw, layout, most=5), draw_mask(draw)
        K, group, C = draw.choice([1, 2]), draw.choice([1, 3]), 3
        scores = draw_scores(draw, K * group, C, torch.float64)
        q = torch.randn(pair.rows, K * group, pair.q.length, C, dtype=torch.float64)
        k, v = (torch.randn(pair.rows, K, pair.k.length, C, dtype=torch.float64) for _ in range(2))
        bias = torch.zeros(1, 1, 1, 1) if scores.bias is None else scores.bias.dense(pair.q, pair.k)
        wanted = loops(q, k, v, in_plain_python(mask, pair), scores, bias)
        found = reference.attend(q, k, v, lower(mask, pair.q, pair.k), scores)
        assert torch.allclose(found.flatten(0, 2), torch.tensor(wanted, dtype=torch.float64), atol=1e-12), (seed, mask)


def test_weights_are_shares() -> None:
    """They sum to one where anything is visible, to less where a sink takes part, and are at least float32."""
    span = Tokens(5, start=0)
    visible = lower(Causal(), span, span)
    q = torch.randn(2, 3, 5, 4, dtype=torch.bfloat16)
    weights = reference.weights(q, q, visible, Scores(0.5))
    assert weights.dtype == torch.float32
    assert torch.allclose(weights.sum(-1), torch.ones(2, 3, 5))
    assert not weights.triu(1).any()
    sunk = reference.weights(q, q, visible, Scores(0.5, sinks=torch.zeros(3)))
    assert (sunk.sum(-1) < 1).all()


def test_scores_beyond_what_exp_can_hold_are_no_trouble() -> None:
    """The softmax is shifted by its maximum: scores of ±10,000 give shares, not NaN."""
    span = Tokens(3, start=0)
    q = torch.tensor([100.0, -100.0, 100.0]).view(1, 1, 3, 1)
    out = reference.attend(q, q, q, lower(Causal(), span, span), Scores(1.0))
    assert out.flatten().tolist() == [100.0, -100.0, 100.0]
