"""The kernel of batched products: its gradients by numbers, what it is chosen for, and what it keeps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anyformer import spec
from anyformer.parts import kernels
from anyformer.parts.kernels import Scores, products, sdpa
from anyformer.parts.masks import Causal, Full, Mask, Tokens, Valid, lower
from anyformer.parts.positions import RelativePositions

PADDED = Tokens(6, start=0, valid=torch.tensor([[True] * 4 + [False] * 2, [False] * 6]))
BUCKETS = spec.RelativeBuckets(buckets=4, max_distance=6, bidirectional=True)


def drawn(H: int = 4, K: int = 2, T: int = 6, S: int = 6) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = ((2, H, T, 3), (2, K, S, 3), (2, K, S, 2))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("mask", [Causal(), Full(), Full() & Valid(), Causal() & Valid()], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradients_by_numbers(mask: Mask, dropout: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of queries, keys, values and a table of biases: causal blocks with a last one that is not whole, padding, a row
    that sees nothing, grouped heads; with dropout, of what is left by it."""
    monkeypatch.setattr(products, "BLOCK", 4)
    table = RelativePositions(BUCKETS, 4).double()
    k = PADDED if "Valid" in str(mask) else Tokens(6, start=0)

    def attend(q: Tensor, k_: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
        torch.manual_seed(1)
        if weight is None:
            return products.attend(q, k_, v, lower(mask, Tokens(6, start=0), k), Scores(0.5, dropout=dropout))
        with torch.nn.utils.stateless._reparametrize_module(table, {"weight": weight}):
            scores = Scores(0.5, bias=table, dropout=dropout)
            return products.attend(q, k_, v, lower(mask, Tokens(6, start=0), k), scores)

    assert torch.autograd.gradcheck(attend, drawn())
    assert torch.autograd.gradcheck(attend, (*drawn(), table.weight))


def test_it_is_chosen_where_training_on_a_cpu_needs_it() -> None:
    """For dropout, a bias that learns, and bfloat16; not without gradients, nor beyond what may be kept."""
    q, k, _ = drawn()
    table = RelativePositions(BUCKETS, 4)
    for scores in (Scores(1.0, dropout=0.1), Scores(1.0, bias=table)):
        assert products.pays(q, k, scores)
    assert products.pays(q.bfloat16(), k.bfloat16(), Scores(1.0)) and not products.pays(q, k, Scores(1.0))
    with torch.no_grad():
        assert not products.pays(q, k, Scores(1.0, dropout=0.1))
    span = Tokens(6, start=0)
    visible = lower(Causal(), span, span)
    assert kernels._kernel(q, k, visible, Scores(1.0, dropout=0.1)) is products
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LARGEST_KEPT", 2 * 4 * 6 * 6 - 1)
        assert kernels._kernel(q, k, visible, Scores(1.0, dropout=0.1)) is sdpa
    assert products.limits(q, k, visible, Scores(1.0, soft_cap=1.0)) == "it has no soft cap"
    assert products.limits(q, k, visible, Scores(1.0, sinks=torch.zeros(4))) == "it has no sinks"


def test_causal_blocks_leave_out_what_is_hidden() -> None:
    """Of the 512 x 512 weights of a head five eighths are made and kept."""
    span, q = Tokens(512, start=0), torch.randn(1, 1, 512, 2, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        products.attend(q, q, q, lower(Causal(), span, span), Scores(1.0))
    assert sum(kept) == 512 * 512 * 5 // 8 + 3 * q.numel()
