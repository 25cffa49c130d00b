"""The banded kernel at every edge of its blocks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anyformer.parts.kernels import Scores, banded, reference
from anyformer.parts.masks import Causal, Mask, Tokens, Valid, Window, lower
from anyformer.parts.positions import alibi_bias


def both(mask: Mask, q: Tokens, k: Tokens, scores: Scores | None = None) -> None:
    """Forward and backward as the reference, in float64."""
    torch.manual_seed(0)
    scores = scores or Scores(0.7)
    visible = lower(mask, q, k)
    assert visible.form == "band", mask
    inputs = [
        torch.randn(2, heads, length, 3, dtype=torch.float64, requires_grad=True)
        for heads, length in ((4, q.length), (2, k.length), (2, k.length))
    ]
    back = torch.randn(2, 4, q.length, 3, dtype=torch.float64)
    results = []
    for kernel in (banded, reference):
        out = kernel.attend(*inputs, lower(mask, q, k), scores)
        results.append((out, *torch.autograd.grad(out, inputs, back)))
    for found, wanted in zip(*results, strict=True):
        assert torch.allclose(found, wanted, atol=1e-12), (mask, q.length, k.length, q.start)


@pytest.mark.parametrize("size", [1, 4, 5])
def test_windows_around_the_size_of_a_block(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """w = 1, 2, and one less, equal, one and two more than a block; on the left, on the right, on both; over lengths
    that end before, at and after the end of a block."""
    monkeypatch.setattr(banded, "SMALLEST", size)
    for w in sorted({1, 2, size - 1, size, size + 1, size + 2} - {0}):
        for T in (2 * w + 2, 4 * size, 4 * size + 1, 4 * size + 3):
            span = Tokens(T, start=0)
            for mask in (Causal() & Window(w), Window(w, 1), Window(1, w), Window(w, w), Window(w, 2)):
                if sum((mask.b.left, 1) if hasattr(mask, "b") else (mask.left, mask.right)) < T:
                    both(mask, span, span)


def test_a_real_block_of_sixty_four() -> None:
    """The size that is used, over several blocks, at a distance from the beginning."""
    for w in (1, 63, 64, 65, 66):
        span = Tokens(200, start=17)
        both(Causal() & Window(w) & Valid(), span, span)


@pytest.mark.parametrize("offset", range(12))
def test_fewer_queries_than_keys_at_any_offset(offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of queries anywhere in the keys: what follows it is hidden or visible as the window says."""
    monkeypatch.setattr(banded, "SMALLEST", 3)
    # Nearer to the beginning than this the window hides nothing, and is not a band.
    for T in (T for T in (1, 3, 4, 7, 10) if offset + T > 5):
        for mask in (Causal() & Window(4), Window(3, 4), Window(1, 1), Window(5, 1)):
            both(mask, Tokens(T, start=5 + offset), Tokens(T + 12, start=5))


def test_what_is_inside_a_window_may_be_any_rule_of_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes in the window, two windows at once, contradictions: the tile says what the band does not."""
    monkeypatch.setattr(banded, "SMALLEST", 4)
    span = Tokens(23, start=2)
    for mask in (
        Window(5, 5) & ~Window(2, 2),
        Causal() & Window(6) & (Window(2) | ~Window(4)),
        Window(3, 3) & ~Window(3, 3),
        Window(7, 2) & Window(3, 4) & Causal(),
    ):
        both(mask, span, span)


@pytest.mark.parametrize("largest", [1, 200, 1 << 25])
def test_tiles_that_are_materialised_are_taken_a_few_at_a_time(largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft caps, sinks and biases through the reference, in as many steps as the limit asks for."""
    monkeypatch.setattr(banded, "SMALLEST", 4)
    monkeypatch.setattr(banded, "LARGEST_TILES", largest)
    span = Tokens(37, start=0)
    sinks = torch.randn(4, dtype=torch.float64)
    both(Causal() & Window(5), span, span, Scores(0.7, soft_cap=1.5))
    both(Window(3, 4), span, span, Scores(0.7, sinks=sinks, bias=alibi_bias(4, 8.0)))


def test_work_grows_with_the_window_and_not_with_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel below is ever shown more scores than queries times three blocks; a text twice as long costs twice."""
    scores = []
    for name in ("sdpa", "reference"):
        kernel = getattr(banded, name)
        attend = kernel.attend

        def counted(q: Tensor, k: Tensor, *rest: object, attend: object = attend) -> Tensor:
            scores.append(q.shape[0] * q.shape[2] * k.shape[2])
            return attend(q, k, *rest)  # type: ignore[operator]

        monkeypatch.setattr(kernel, "attend", counted)
    costs = []
    for T in (1024, 2048):
        scores.clear()
        span, q = Tokens(T, start=0), torch.randn(1, 1, T, 2)
        banded.attend(q, q, q, lower(Causal() & Window(100), span, span), Scores(1.0))
        costs.append(sum(scores))
    assert costs[0] <= 1100 * 2 * 100
    assert costs[1] <= 2.1 * costs[0]
