"""bfloat16 products widened to float32: what they give, whatever the machine that tests them finds faster."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anyformer import families
from anyformer.model import build
from anyformer.parts.kernels import native, wide
from anyformer.parts.linear import Linear, added, project


@pytest.fixture(autouse=True)
def _slow_at_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "narrow_pays", lambda: False)


def _gradients(y: tuple[Tensor, ...], dy: tuple[Tensor, ...], of: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(y, of, tuple(one.to(each.dtype) for one, each in zip(dy, y, strict=True))))


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 150),
    inner=st.integers(1, 70),
    widths=st.lists(st.integers(1, 90), min_size=1, max_size=3),
    biased=st.booleans(),
    narrow_weights=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 1000),
)
def test_products_and_gradients_are_the_exact_ones_of_what_is_kept(
    rows: int, inner: int, widths: list[int], biased: bool, narrow_weights: bool, dtype: torch.dtype, seed: int
) -> None:
    """In float64, of x rounded where it is kept and dy as it comes in, but for one rounding of what comes out."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.bfloat16 if narrow_weights else torch.float32

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = draw(2, rows, inner).requires_grad_()
    weights = [draw(width, inner).to(kind).requires_grad_() for width in widths]
    biases = [draw(width).to(kind).requires_grad_() if biased else None for width in widths]
    learning = [x, *weights, *(bias for bias in biases if bias is not None)]
    dy = tuple(draw(2, rows, width).to(dtype) for width in widths)

    y = wide.linears(x, weights, biases, dtype)
    found = _gradients(y, dy, learning)
    with torch.autocast("cpu", torch.bfloat16):
        again = _gradients(wide.linears(x, weights, biases, dtype), dy, learning)
    assert all(map(torch.equal, found, again))  # also where gradients are made within autocast

    exact = [tensor.detach().double().requires_grad_() for tensor in learning]
    its_biases = exact[1 + len(widths) :] if biased else [None] * len(widths)
    pairs = list(zip(exact[1:], its_biases))
    of_x = _gradients(tuple(nn.functional.linear(exact[0], w, b) for w, b in pairs), dy, exact[:1])
    kept = x.detach().bfloat16().double()
    of_matrices = _gradients(tuple(nn.functional.linear(kept, w, b) for w, b in pairs), dy, exact[1:])
    with torch.no_grad():
        wanted = [nn.functional.linear(exact[0], w, b) for w, b in pairs]
    assert [each.dtype for each in y] == [dtype] * len(widths)
    assert [each.dtype for each in found] == [each.dtype for each in learning]
    for one, other in zip([*y, *found], [*wanted, *of_x, *of_matrices], strict=True):
        rounding = 2**-8 if one.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(one.double(), other, rtol=rounding, atol=1e-4)


@pytest.mark.parametrize("width", [5, 3000])
def test_without_gradients_the_same_a_tile_at_a_time(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide, "TILE", 1 << 12)
    x, weight, bias = torch.randn(100, 48).bfloat16(), torch.randn(width, 48).bfloat16(), torch.randn(width).bfloat16()
    with torch.no_grad():
        (found,) = wide.linears(x, (weight,), (bias,))
    (learning,) = wide.linears(x, (weight.requires_grad_(),), (bias,))
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, learning, rtol=2**-8, atol=1e-4)


def test_only_what_learns_gets_a_gradient() -> None:
    """A frozen matrix, as under an adapter, and an input that is data."""
    frozen, learning = torch.randn(8, 4), torch.randn(8, 4, requires_grad=True)
    x = torch.randn(3, 4, requires_grad=True)
    y = wide.linears(x, (frozen, learning), (None, None))
    sum(each.sum() for each in y).backward()
    assert x.grad is not None and learning.grad is not None and frozen.grad is None
    data = torch.randn(3, 4)
    wide.linears(data, (learning,), (None,))[0].sum().backward()
    assert data.grad is None


def test_under_autocast_linears_go_this_way() -> None:
    """Alone, side by side, and on a residual stream, whose dtype stays."""
    calls: list[torch.dtype] = []
    linears = [Linear(16, 24), Linear(16, 8)]
    x, stream = torch.randn(2, 5, 16), torch.randn(2, 5, 24)
    real = wide.linears

    def noting(*arguments: object) -> tuple[Tensor, ...]:
        calls.append(arguments[3] if len(arguments) > 3 else torch.bfloat16)  # type: ignore[arg-type]
        return real(*arguments)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
        patch.setattr(wide, "linears", noting)
        assert linears[0](x).dtype == torch.bfloat16
        assert [each.dtype for each in project(x, linears)] == [torch.bfloat16] * 2
        assert [each.dtype for each in project(x, linears, to_attend=True)] == [torch.float32] * 2
        assert added(linears[0], x, stream).dtype == torch.float32
    assert calls == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    assert linears[0](x).dtype == torch.float32 and len(calls) == 4


def test_nothing_is_widened_where_bfloat16_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "narrow_pays", lambda: True)
    with torch.autocast("cpu", torch.bfloat16):
        assert not wide.pays(torch.randn(200, 8))


@pytest.mark.parametrize("preset", ["llama:tiny", "bert:tiny", "t5:tiny"])
def test_a_model_learns_at_least_as_exactly_as_under_plain_autocast(preset: str) -> None:
    """The error of all gradients beside those of float64, and of the loss."""
    family, size = preset.split(":")
    model = build(families.named(family)(size), seed=1).eval()  # nothing dropped
    ids = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
    more = {"source": ids} if model.spec.encoder is not None and model.spec.decoder is not None else {}

    def learn(narrow: bool) -> tuple[float, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            loss = model(ids, targets=ids.roll(1, 1), **more).loss
        found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], materialize_grads=True)
        return loss.item(), torch.cat([each.flatten().double() for each in found])

    widened = learn(True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "narrow_pays", lambda: True)
        rounded = learn(True)
    model.double()
    exact = learn(False)
    assert 0 < (widened[1] - exact[1]).norm() <= (rounded[1] - exact[1]).norm()
    assert abs(widened[0] - exact[0]) <= 2e-3 * exact[0]
