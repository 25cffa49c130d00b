"""The tiled softmax: the same whatever the tile, and never more than a tile at a time."""

from __future__ import annotations

import pytest
import torch

from anyformer.parts.kernels import Scores, online, reference
from anyformer.parts.masks import Causal, Tokens, Window, lower


@pytest.mark.parametrize("tile", [1, 2, 3, 7, 11, 64])
def test_any_tile_gives_the_reference(tile: int) -> None:
    """Forward and backward, with maxima that turn up late, and first tiles in which nothing is visible."""
    torch.manual_seed(0)
    q = torch.randn(2, 4, 7, 3, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(2, 2, 11, 3, dtype=torch.float64) for _ in range(2))
    k = (k * torch.arange(1.0, 12.0, dtype=torch.float64)[:, None]).requires_grad_()
    v.requires_grad_()
    back = torch.randn(2, 4, 7, 3, dtype=torch.float64)
    for mask in (Causal(), Causal() & Window(3), Window(2, 2)):
        results = []
        for attend in (lambda *args: online.attend(*args, tile=tile), reference.attend):
            out = attend(q, k, v, lower(mask, Tokens(7, start=3), Tokens(11, start=0)), Scores(1.3))
            results.append((out, *torch.autograd.grad(out, (q, k, v), back)))
        for found, wanted in zip(*results, strict=True):
            assert torch.allclose(found, wanted, atol=1e-12)


def test_no_tensor_holds_all_scores() -> None:
    """The largest tensor made on the way, forward and backward, is a tile's or an input's, not T x S."""
    T, tile = 96, 8
    span = Tokens(T, start=0)
    q = torch.randn(1, 1, T, 2, requires_grad=True)
    largest = 0

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.is_floating_point():
                largest = max(largest, out.untyped_storage().nbytes() // out.element_size())
            return out

    with Watch(), torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        out = online.attend(q, q, q, lower(Causal(), span, span), Scores(1.0), tile=tile)
        out.sum().backward()
    assert tile * tile < largest <= max(T * 2, tile * tile * 2)
