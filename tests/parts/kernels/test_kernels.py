"""Every kernel that does not refuse gives what the reference gives, forward and backward."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from who_sees_whom import LAYOUTS, draw_mask, draw_pair, draw_scores

from anyformer.errors import KernelError
from anyformer.parts import kernels
from anyformer.parts.kernels import KERNELS, Scores, banded, online, products, reference, sdpa
from anyformer.parts.masks import Causal, SameDocument, Tokens, Visible, Window, lower
from anyformer.parts.positions import RelativePositions, alibi_bias

#: Large gradients come back: what is zero must stay zero under them.
BACK = 100.0
BOUNDS = {torch.float64: 1e-11, torch.float32: 2e-5}


@dataclass(frozen=True)
class Case:
    """One attention: what goes in, and a gradient to come back."""

    q: Tensor
    k: Tensor
    v: Tensor
    visible: Visible
    scores: Scores
    back: Tensor

    def parameters(self) -> list[Tensor]:
        """What has a gradient."""
        table = self.scores.bias.weight if isinstance(self.scores.bias, RelativePositions) else None
        return [x for x in (self.q, self.k, self.v, self.scores.sinks, table) if x is not None]

    def afresh(self) -> Case:
        """The same, lowered again: whatever a forward pass keeps is made anew for the next backward pass."""
        return replace(self, visible=lower(self.visible.mask, self.visible.q, self.visible.k))

    def outcome(self, attend: Any) -> tuple[Tensor, ...]:
        """The output and every gradient."""
        case = self.afresh()
        out = attend(case.q, case.k, case.v, case.visible, case.scores)
        return (out, *torch.autograd.grad(out, case.parameters(), case.back, materialize_grads=True))


def draw_case(draw: random.Random, layout: str, dtype: torch.dtype, most: int = 9, wide: bool = True) -> Case:
    """Any mask, any layout, any number of heads (multi-head, grouped, multi-query), values of any width."""
    torch.manual_seed(draw.randrange(2**31))
    pair = draw_pair(draw, layout, most)
    K, group, C = draw.choice([1, 2, 3]), draw.choice([1, 2, 3]), draw.choice([1, 3, 4, 8])
    B, T, S = pair.rows, pair.q.length, pair.k.length
    mask = draw_mask(draw, shallow=draw.random() < 0.7)
    visible = lower(mask, pair.q, pair.k)
    q = torch.randn(B, K * group, T, C, dtype=dtype, requires_grad=True)
    k = torch.randn(B, K, S, C, dtype=dtype, requires_grad=True)
    scores = draw_scores(draw, K * group, C, dtype, wide)
    wide_v = draw.choice([C, C, 1, C + 2])
    v = torch.randn(B, K, S, wide_v, dtype=dtype, requires_grad=True)
    return Case(q, k, v, visible, scores, BACK * torch.randn(B, K * group, T, wide_v, dtype=dtype))


def compare(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], bound: float, note: object) -> None:
    """The output, and after it gradients, each within the bound, relative to its largest number, but not to less than
    what went in; a NaN is never within."""
    for index, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape, note
        worst = float((a - b).detach().abs().max() / b.detach().abs().max().clamp(min=BACK if index else 1.0))
        assert worst <= bound, (index, worst, note)


def tiny_online(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """The tiled kernel with tiles of three: many of them, and a last one that is not whole."""
    return online.attend(q, k, v, visible, scores, tile=3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_every_kernel_is_the_reference_forward_and_backward(
    layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random masks x layouts x shapes x scores, 64 a layout: outputs and gradients of queries, keys, values, sinks and
    bucket tables; the kernel that is chosen when none is named included."""
    monkeypatch.setattr(banded, "SMALLEST", 2)
    monkeypatch.setattr(products, "BLOCK", 4)
    served = dict.fromkeys(["spans", "banded", "products", "sdpa", "online", "chosen"], 0)
    for seed in range(40 if dtype == torch.float64 else 24):
        draw = random.Random(f"{layout} {dtype} {seed}")
        case = draw_case(draw, layout, dtype, most=draw.choice([9, 9, 24]), wide=seed % 2 == 0)
        wanted = case.outcome(reference.attend)
        assert all(x.isfinite().all() for x in wanted)
        contenders: dict[str, Any] = {"online": tiny_online, "chosen": kernels.attend}
        for name in ("spans", "banded", "products", "sdpa"):
            if KERNELS[name].limits(case.q, case.k, case.visible, case.scores) is None:
                contenders[name] = KERNELS[name].attend
        for name, attend in contenders.items():
            compare(case.outcome(attend), wanted, BOUNDS[dtype], (name, seed, case.visible.mask, case.scores))
            served[name] += 1
    assert served["sdpa"] > 8 and served["products"] > 8
    if layout == "range":
        assert served["banded"] > 1


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_without_gradients_too(layout: str) -> None:
    """Kernels that go another way where no gradient is wanted come to the same."""
    for seed in range(12):
        case = draw_case(random.Random(f"no gradients {layout} {seed}"), layout, torch.float32)
        wanted = reference.attend(case.q, case.k, case.v, case.visible, case.scores)
        found = kernels.attend(case.q, case.k, case.v, case.visible, case.scores)
        compare((found,), (wanted,), BOUNDS[torch.float32], (seed, case.visible.mask, case.scores))


@pytest.mark.parametrize("layout", ["range", "packed", "padded", "permuted"])
def test_flex_is_the_reference_forward(layout: str) -> None:
    """FlexAttention takes the very same masks and biases, pair by pair."""
    for seed in range(2):
        case = draw_case(random.Random(f"flex {layout} {seed}"), layout, torch.float32)
        with torch.no_grad():
            if KERNELS["flex"].limits(case.q, case.k, case.visible, case.scores) is not None:
                continue
            found = KERNELS["flex"].attend(*(x.detach() for x in (case.q, case.k, case.v)), case.visible, case.scores)
            wanted = reference.attend(case.q, case.k, case.v, case.visible, case.scores)
        compare((found,), (wanted,), 2e-5, (seed, case.visible.mask, case.scores))


def test_rows_that_see_nothing_are_zero_and_stay_so_backward() -> None:
    """Exactly zero, output and gradient of the query, in every kernel and dtype, however large the gradient."""
    rows = 0
    for seed in range(120):
        dtype = (torch.float64, torch.float32, torch.bfloat16)[seed % 3]
        draw = random.Random(seed)
        case = draw_case(draw, draw.choice(["padded", "permuted", "ids"]), dtype, wide=seed % 2 == 0)
        case = replace(case, back=case.back * 1e4)
        blind = ~case.visible.dense.any(-1)[:, 0]
        contenders: dict[str, Any] = {"reference": reference.attend, "online": tiny_online, "chosen": kernels.attend}
        if sdpa.limits(case.q, case.k, case.visible, case.scores) is None:
            contenders |= {"sdpa": sdpa.attend, "products": products.attend}
        for name, attend in contenders.items():
            out, back, *others = case.outcome(attend)
            assert all(x.isfinite().all() for x in (out, back, *others)), (name, seed)
            hidden = blind[:, None].expand(out.shape[:3])
            assert not out[hidden].any() and not back[hidden].any(), (name, seed)
        rows += int(blind.sum())
    assert rows > 50


def test_bfloat16_is_near_the_reference_in_float32() -> None:
    """The rounding of inputs and outputs, no more: within 2% of the largest output."""
    for seed in range(24):
        draw = random.Random(seed)
        case = draw_case(draw, draw.choice(LAYOUTS), torch.float32, most=20, wide=seed % 2 == 0)
        half = [x.bfloat16() for x in (case.q, case.k, case.v)]
        wanted = reference.attend(*(x.float() for x in half), case.visible, case.scores)
        contenders: dict[str, Any] = {"reference": reference.attend, "online": tiny_online, "chosen": kernels.attend}
        if sdpa.limits(half[0], half[1], case.visible, case.scores) is None:
            contenders |= {"sdpa": sdpa.attend, "products": products.attend}
        for name, attend in contenders.items():
            found = attend(*half, case.visible, case.scores)
            assert found.dtype == torch.bfloat16
            compare((found.float(),), (wanted,), 2e-2, (name, seed))


@pytest.mark.parametrize("name", ["reference", "sdpa", "online", "banded", "products"])
def test_dropout_drops_as_often_as_it_says_and_scales_the_rest(name: str) -> None:
    """With the identity as values the output is the weights themselves: a share p of them is zero, the others are
    divided by 1 - p, and without dropout none is."""
    p, T = 0.3, 64
    span = Tokens(T, start=0)
    visible = lower(Window(8, 8) if name == "banded" else Causal() | ~Causal(), span, span)
    torch.manual_seed(0)
    q = torch.zeros(4, 4, T, T)
    v = torch.eye(T).expand(4, 4, T, T)
    attend = KERNELS[name].attend
    whole = attend(q, q, v, visible, Scores(1.0))
    dropped = attend(q, q, v, visible, Scores(1.0, dropout=p))
    seen = visible.dense.expand(whole.shape)
    assert not dropped[~seen].any()
    assert torch.allclose(whole[seen].reciprocal().round(), whole[seen].reciprocal(), rtol=1e-5)
    kept = dropped[seen] != 0
    n = kept.numel()
    assert abs(float(kept.float().mean()) - (1 - p)) < 5 * (p * (1 - p) / n) ** 0.5
    assert torch.allclose(dropped[seen][kept], whole[seen][kept] / (1 - p), rtol=1e-5)


def test_documents_are_attended_apart() -> None:
    """Packed rows never ask for a dense mask over all: only the documents do their work."""
    packed = Tokens.packed(((5, 7, 1), (13,)))
    visible = lower(Causal() & SameDocument(), packed, packed)
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 13, 8) for _ in range(3))
    out = kernels.attend(q, k, v, visible, Scores(0.3))
    assert "dense" not in vars(visible)
    compare((out,), (reference.attend(q, k, v, visible, Scores(0.3)),), 1e-5, None)


def test_a_named_kernel_serves_or_says_why_not() -> None:
    """Refused by name with the reason; with a fall-back the reference serves, and what happened is on record."""
    span = Tokens(6, start=0)
    visible = lower(Causal(), span, span)
    q = torch.randn(1, 2, 6, 4)
    capped = Scores(0.5, soft_cap=1.0)
    with kernels.use("sdpa"), pytest.raises(KernelError, match="kernel 'sdpa' cannot serve this attention: it has no"):
        kernels.attend(q, q, q, visible, capped)
    with kernels.use("banded"), pytest.raises(KernelError, match="needs a window"):
        kernels.attend(q, q, q, visible, Scores(0.5))
    with kernels.use("sdpa", fall_back=True) as use:
        assert use is not None
        out = kernels.attend(q, q, q, visible, capped)
        kernels.attend(q, q, q, visible, Scores(0.5))
        assert (use.served, use.refused) == (1, {"it has no soft cap"})
    assert torch.equal(out, reference.attend(q, q, q, visible, capped))
    with (
        pytest.raises(KernelError, match="no attention kernel is called 'quick'; there are auto, few, spans, banded"),
        kernels.use("quick"),
    ):
        pass
    with kernels.use("flex"), pytest.raises(KernelError, match="no backward pass"):
        kernels.attend(q.requires_grad_(), q, q, visible, Scores(0.5))


def test_the_choice_ends_with_its_block() -> None:
    """An exception inside does not leave a kernel chosen, and choices nest."""
    span = Tokens(3, start=0)
    visible, q = lower(Causal(), span, span), torch.randn(1, 1, 3, 2)
    with watched() as asked:
        with kernels.use("online"):
            with kernels.use("reference"):
                kernels.attend(q, q, q, visible, Scores(1.0))
            kernels.attend(q, q, q, visible, Scores(1.0))
            with kernels.use("auto"):
                kernels.attend(q, q, q, visible, Scores(1.0))
        with pytest.raises(ZeroDivisionError), kernels.use("reference"):
            raise ZeroDivisionError
        kernels.attend(q, q, q, visible, Scores(1.0))
    assert asked == ["reference", "online", "spans", "spans"]


def test_large_matrices_go_to_tiles_where_nothing_else_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft caps are beyond torch's kernel: the whole matrix while it is small, tiles beyond."""
    monkeypatch.setattr(kernels, "LARGEST_MATRIX", 100)
    capped = Scores(1.0, soft_cap=1.0)
    with watched() as asked:
        for T in (10, 11):
            span, q = Tokens(T, start=0), torch.randn(1, 1, T, 2)
            kernels.attend(q, q, q, lower(Causal(), span, span), capped)
    assert asked == ["reference", "online"]


def test_a_window_of_one_document_in_a_batch_of_heads_that_share_keys() -> None:
    """One query against a cache, grouped heads: the shortcut that reads each key head once is the reference."""
    torch.manual_seed(0)
    for H, K in ((6, 2), (4, 1), (3, 3)):
        q, k, v = torch.randn(2, H, 1, 5), torch.randn(2, K, 9, 5), torch.randn(2, K, 9, 5)
        visible = lower(Causal(), Tokens(1, start=8), Tokens(9, start=0))
        assert visible.form == "everything"
        for bias in (None, alibi_bias(H, 8.0)):
            scores = Scores(0.4, bias=bias)
            found = sdpa.attend(q, k, v, visible, scores)
            compare((found,), (reference.attend(q, k, v, visible, scores),), 1e-5, (H, K))


@contextmanager
def watched() -> Iterator[list[str]]:
    """The names of the kernels that serve within the block."""
    asked: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for name, kernel in KERNELS.items():

            def attend(*args: Any, kernel_attend: Any = kernel.attend, name: str = name) -> Tensor:
                asked.append(name)
                return kernel_attend(*args)

            patch.setattr(kernel, "attend", attend)
        yield asked
