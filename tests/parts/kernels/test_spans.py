"""The kernel of spans: its arithmetic on every instruction set, which masks have spans, and where it is chosen."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.parts import kernels
from anyformer.parts.kernels import KERNELS, Scores, native, reference, spans
from anyformer.parts.masks import Causal, Full, Mask, Prefix, SameDocument, Tokens, Valid, Window, conjuncts, lower
from anyformer.parts.positions import alibi_bias

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler")


def attended(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, scale: float) -> Tensor:
    """By the formula; a query that sees nothing gives zeros."""
    G = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(G, 1), v.repeat_interleave(G, 1)
    at = torch.arange(k.shape[2])
    seen = ((at >= first[..., None]) & (at < last[..., None]))[:, None]
    return (scale * q @ k.mT).masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0) @ v


@pytest.mark.usefixtures("instructions")
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    heads=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    queries=st.sampled_from((1, 7, 32, 33, 70)),
    keys=st.sampled_from((1, 31, 64, 129, 150, 600)),
    widths=st.sampled_from(((64, 64), (16, 80), (40, 24), (3, 5), (1, 1))),
    own=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_outputs_and_gradients_are_the_formulas(
    batch: int, heads: tuple[int, int], queries: int, keys: int, widths: tuple[int, int], own: bool, seed: int
) -> None:
    """Spans drawn at random, empty ones among them, alike for all rows or each row's own; heads in groups; widths that
    no vector divides; strided heads; scores large enough to overflow but for the maximum that is taken off."""
    torch.manual_seed(seed)
    (K, G), (C, V) = heads, widths
    q, k, v = (
        torch.randn(batch, n, h, c).transpose(1, 2) for n, h, c in ((queries, K * G, C), (keys, K, C), (keys, K, V))
    )
    q = 30 * q
    first, last = (
        torch.randint(0, keys + 1, (2, batch if own else 1, queries), dtype=torch.int32).sort(0).values.contiguous()
    )
    scale, d_y = C**-0.5, torch.randn(batch, K * G, queries, V)
    y, log_sums = native.spans(q, k, v, first, last, scale)
    found = (y, *native.spans_back(q, k, v, y, log_sums, d_y, first, last, scale))
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    wanted_y = attended(exact[0], exact[1], exact[2], first, last, scale)
    wanted = (wanted_y, *torch.autograd.grad(wanted_y, exact, d_y.double()))
    for got, want in zip(found, wanted, strict=True):
        # Where gradients cancel, what they are made of is still as large as the queries.
        assert float((got - want).detach().abs().max()) <= 2e-5 * float(want.detach().abs().max().clamp(min=30))
    assert (y.transpose(1, 2)[(first == last).expand(batch, -1)] == 0).all()


@pytest.mark.parametrize(
    "mask",
    [Full(), Causal(), Window(3, 2), Causal() & Window(4), Causal() & SameDocument(), Full() & SameDocument()],
    ids=str,
)
def test_spans_are_what_the_mask_allows(mask: Mask) -> None:
    """Of queries and keys that are the same tokens, of keys that began earlier, and of packed documents."""
    row = Tokens(9, start=0)
    packed = Tokens.packed(((2, 4, 3), (9,)))
    for q, k in ((row, row), (Tokens(3, start=5), row), (packed, packed)):
        visible = lower(mask, q, k)
        if q is packed and not isinstance(mask, Full) and SameDocument() not in conjuncts(mask):
            continue  # positions begin anew in each document: a window over them is no span
        assert visible.spans is not None
        first, last = visible.spans
        at = torch.arange(k.length)
        found = (at >= first[..., None]) & (at < last[..., None])
        assert torch.equal(found.expand(visible.dense[:, 0].shape), visible.dense[:, 0])


def test_masks_without_spans_say_so() -> None:
    """Padding that only a tensor knows, prefixes of a length each, and positions that are anywhere."""
    row = Tokens(4, start=0)
    padded = Tokens(4, start=0, valid=torch.tensor([[True, True, False, True]]))
    assert lower(Full() & Valid(), row, padded).spans is None
    prefixed = Tokens(4, start=0, prefix=torch.tensor([[2], [3]]))
    assert lower(Causal() | Prefix(), prefixed, prefixed).spans is None
    anywhere = Tokens(4, position=torch.tensor([[3, 1, 0, 2]]), low=0, high=3)
    assert lower(Causal(), anywhere, anywhere).spans is None


def test_it_serves_where_it_can_and_says_what_it_cannot() -> None:
    """float32 with enough heads for every thread; else others do."""
    row = Tokens(4, start=0)
    visible, q = lower(Causal(), row, row), torch.randn(2, 2, 4, 3)
    assert kernels._kernel(q, q, visible, Scores(1.0)) is spans
    for scores, why in (
        (Scores(1.0, soft_cap=1.0), "it has no soft cap"),
        (Scores(1.0, sinks=torch.zeros(2)), "it has no sinks"),
        (Scores(1.0, bias=alibi_bias(2, 8.0)), "it adds nothing to scores"),
        (Scores(1.0, dropout=0.1), "it has no dropout"),
    ):
        assert spans.limits(q, q, visible, scores) == why
        assert kernels._kernel(q, q, visible, scores) is not spans
    assert spans.limits(q.double(), q, visible, Scores(1.0)) == "it multiplies float32 on a CPU, natively"
    with torch.autocast("cpu", torch.bfloat16):
        assert spans.limits(q, q, visible, Scores(1.0)) == "it is not for autocast, compiled code or torch.func"
    few = q[:1, :1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 2)
        assert kernels._kernel(few, few, visible, Scores(1.0)) is not spans


def test_packed_documents_need_no_batches() -> None:
    """One call for all documents of a row, by name or by itself; and what is kept is no more than what came in, what
    came out, a number a query and the spans."""
    packed = Tokens.packed(((5, 11),))
    q = torch.randn(1, 4, 16, 8, requires_grad=True)
    wanted = reference.attend(q, q, q, lower(Causal() & SameDocument(), packed, packed), Scores(0.5))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        visible = lower(Causal() & SameDocument(), packed, packed)
        assert visible.form == "documents"
        found = kernels.attend(q, q, q, visible, Scores(0.5))
    assert visible.made is None
    assert sum(kept.values()) == 2 * q.numel() + 4 * 16 + 2 * 16
    assert float((found - wanted).detach().abs().max()) < 1e-6
    with kernels.use("spans") as use:
        assert torch.equal(kernels.attend(q, q, q, visible, Scores(0.5)), found)
        assert use is not None and use.kernel is KERNELS["spans"]
