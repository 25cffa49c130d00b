"""Packed documents in padded batches: what each would be alone, in few calls."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from anyformer.parts import kernels
from anyformer.parts.kernels import Scores, documents, reference
from anyformer.parts.masks import Causal, Full, Lengths, Mask, Prefix, SameDocument, Tokens, Window, lower


def packed(lengths: Sequence[int], total: int) -> tuple[int, ...]:
    """Lengths, and padding as a last document."""
    missing = total - sum(lengths)
    return (*lengths, missing) if missing else tuple(lengths)


def drawn(total: int, draw: random.Random, longest: int) -> Lengths:
    rows = []
    for _ in range(2):
        row: list[int] = []
        while sum(row) < total:
            row.append(min(draw.randint(1, longest), total - sum(row)))
        rows.append(tuple(row))
    return tuple(rows)


def agree(mask: Mask, q: Tokens, k: Tokens) -> None:
    """Outputs and gradients are the reference's over a dense mask."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(2, heads, tokens.length, 4, dtype=torch.float64, requires_grad=True)
        for heads, tokens in ((4, q), (2, k), (2, k))
    ]
    back = torch.randn(2, 4, q.length, 4, dtype=torch.float64)
    visible = lower(mask, q, k)
    assert visible.form == "documents"
    results = []
    for attend in (kernels.attend, reference.attend):
        out = attend(*inputs, visible, Scores(0.5))
        results.append((out, *torch.autograd.grad(out, inputs, back)))
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found, wanted, atol=1e-12)


@pytest.mark.parametrize("round_to", [1, 4, 16])
@pytest.mark.parametrize(
    "mask", [Causal(), Full(), Causal() & Window(3), Window(2, 3), Causal() | Prefix()], ids=lambda mask: str(mask)
)
def test_documents_in_batches_are_documents_alone(mask: Mask, round_to: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask of a document, batches of one length and of several, documents too long to be rounded."""
    monkeypatch.setattr(documents, "ROUND", round_to)
    monkeypatch.setattr(documents, "LONGEST_ROUNDED", 12)
    for seed in range(4):
        draw = random.Random(seed)
        lengths = drawn(40, draw, 18)
        prefixes = tuple(tuple(draw.randint(0, n) for n in row) for row in lengths) if "Prefix" in str(mask) else None
        tokens = Tokens.packed(lengths, prefixes=prefixes)
        agree(mask & SameDocument(), tokens, tokens)


def test_pairs_see_their_partners() -> None:
    """Cross-attention between packed rows: partners of any length, padding on either side alone, queries without
    keys (zeros) and keys without queries."""
    for q_rows, k_rows in (
        (((3, 5), (7, 1)), ((4, 4), (2, 6))),
        (((3, 4, 2), (7, 2)), ((4, 4), (2, 6))),
        (((9,), (4, 5)), ((5, 2, 1), (2, 6))),
    ):
        q, k = Tokens.packed(q_rows), Tokens.packed(k_rows)
        agree(Full() & SameDocument(), q, k)


def test_many_short_documents_cost_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of a hundred documents of up to 48 tokens: three batches for themselves, nine at most for pairs; made
    once for all layers."""
    draw = random.Random(0)
    rows = [[draw.randint(1, 48) for _ in range(100)] for _ in range(4)]
    total = max(map(sum, rows))
    q, k = (Tokens.packed(tuple(packed(row, total) for row in half)) for half in (rows[:2], rows[2:]))
    calls: list[Tensor] = []
    attend = kernels.attend

    def counted(q: Tensor, *rest: object) -> Tensor:
        calls.append(q)
        return attend(q, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(kernels, "attend", counted)
    for keys, mask, most in ((q, Causal() & SameDocument(), 3 + 2), (k, Full() & SameDocument(), 9 + 4)):
        visible = lower(mask, q, keys)
        for _ in range(2):
            x, y = torch.randn(2, 1, q.length, 2), torch.randn(2, 1, keys.length, 2)
            calls.clear()
            kernels.attend(x, y, y, visible, Scores(1.0))
            assert len(calls) <= 1 + most
        assert documents.layout(visible) is visible.made


def test_whole_rows_are_a_batch_as_they_stand() -> None:
    """Nothing is moved where every row is one document, or all are of one length."""
    for lengths in (((8,), (8,)), ((4, 4), (4, 4))):
        tokens = Tokens.packed(lengths)
        plan = documents.layout(lower(Causal() & SameDocument(), tokens, tokens))
        assert plan.queries is None and plan.keys is None and len(plan.groups) == 1
