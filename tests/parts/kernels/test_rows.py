"""Norms and activations of many rows: their arithmetic on every instruction set, and that they can be differentiated
twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.parts.context import Context
from anyformer.parts.feedforward import ACTIVATIONS, FeedForward, activated
from anyformer.parts.kernels import native, rows
from anyformer.parts.masks import Tokens
from anyformer.parts.norms import Norm

GATED, CONTEXT = spec.FeedForward(hidden=8, activation="silu", gated=True), Context(Tokens(1, start=0))

pytestmark = pytest.mark.usefixtures("instructions")


def apart(found: Tensor, wanted: Tensor) -> float:
    """Of the largest number."""
    return float((found - wanted).detach().abs().max() / wanted.detach().abs().max().clamp(min=1e-30))


@pytest.mark.parametrize("form", [{}, {"weight": False}, {"unit_offset": True}], ids=str)
@pytest.mark.parametrize("width", [3, 15, 64, 77])
def test_rms_norms_and_their_gradients(form: dict[str, bool], width: int) -> None:
    """Against torch in float64; rows that no part divides, widths that no vector does."""
    torch.manual_seed(width)
    norm = Norm(spec.Norm(kind="rms", **form), width)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    x, d_y = (3 * torch.randn(5, 13, width)).requires_grad_(), torch.randn(5, 13, width)
    learning = [x, *norm.parameters()]
    y = norm(x)
    assert type(y.grad_fn).__name__ == "_NormBackward"
    found = (y, *torch.autograd.grad(y, learning, d_y))
    norm.double()
    exact = [x.detach().double().requires_grad_(), *norm.parameters()]
    wanted_y = norm(exact[0])
    wanted = (wanted_y, *torch.autograd.grad(wanted_y, exact, d_y.double()))
    assert all(apart(a, b) < 5e-6 for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-6), (torch.bfloat16, 2**-8)], ids=str)
def test_activations_and_their_gradients(kind: str, gated: bool, dtype: torch.dtype, bound: float) -> None:
    """Against torch in float64, of any number of numbers; bfloat16 is rounded once, on its way out."""
    torch.manual_seed(0)
    x, up, d_y = ((4 * torch.randn(3, 2801)).to(dtype) for _ in range(3))
    found: list[Tensor] = [native.activated_rows(x, up if gated else None, kind)]
    found += [d for d in native.activated_rows_back(x, up if gated else None, d_y, kind) if d is not None]
    exact = [x.double().requires_grad_(), up.double().requires_grad_()][: 1 + gated]
    wanted_y = ACTIVATIONS[kind](exact[0]) * (exact[1] if gated else 1)
    wanted = (wanted_y, *torch.autograd.grad(wanted_y, exact, d_y.double()))
    assert all(apart(a, b) < bound for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_what_is_far_out_and_what_is_no_number(kind: str) -> None:
    """As in torch: far from zero, at zero, and NaN, which stays one."""
    x = torch.tensor([-1e30, -200.0, -90.0, -20.0, -0.0, 0.0, 20.0, 90.0, 1e30, torch.nan])
    if kind == "relu":
        x = torch.cat((x, torch.tensor([-torch.inf, torch.inf])))
    for dtype in native.TYPES:
        found, wanted = native.activated_rows(x.to(dtype), None, kind), ACTIVATIONS[kind](x.to(dtype).double())
        torch.testing.assert_close(found.double(), wanted, rtol=2**-7, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("gated", [True, False])
def test_gradients_of_gradients(gated: bool) -> None:
    """Whoever differentiates the gradients gets those of torch's own operations."""
    torch.manual_seed(0)
    x, up, d_y = (torch.randn(4, 9, requires_grad=True) for _ in range(3))
    norm = Norm(spec.Norm(kind="rms"), 9)

    def twice(y: Tensor, of: list[Tensor]) -> list[Tensor]:
        first = torch.autograd.grad(y, of, d_y, create_graph=True)
        return list(torch.autograd.grad(sum((g * g).sum() for g in first), [*of, d_y]))  # type: ignore[arg-type]

    pairs = [(norm(x), norm.plain(x), [x, *norm.parameters()])]
    kind, plain = "gelu_tanh", ACTIVATIONS["gelu_tanh"]
    pairs.append((activated(kind, x, up), plain(x) * up, [x, up]) if gated else (activated(kind, x), plain(x), [x]))
    for ours, torchs, of in pairs:
        assert all(apart(a, b) < 1e-5 for a, b in zip(twice(ours, of), twice(torchs, of), strict=True))


def test_gradients_of_each_sample_by_themselves() -> None:
    """torch.func goes through torch's own operations: those of a gated feed-forward and its norm for each row of a
    batch at once are those of the rows one by one."""
    parts = nn.ModuleDict({"norm": Norm(spec.Norm(kind="rms"), 6), "mixer": FeedForward(GATED, 6)})
    x = torch.randn(3, 1, 6)

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        read = torch.func.functional_call(parts["norm"], {"weight": weights["norm.weight"]}, (x,))
        own = {name.removeprefix("mixer."): each for name, each in weights.items() if name.startswith("mixer.")}
        return torch.func.functional_call(parts["mixer"], own, (read, CONTEXT)).square().sum()

    weights = {name: parameter.detach() for name, parameter in parts.named_parameters()}
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    for index, row in enumerate(x):
        parts.zero_grad()
        loss(dict(parts.named_parameters()), row).backward()
        for name, parameter in parts.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-4, atol=1e-6)


def test_only_plain_tensors_side_by_side_are_served() -> None:
    """Not views with gaps, other dtypes, or tensors that are more than tensors."""
    x = torch.randn(4, 6)
    assert rows.serves(x, x) and rows.serves(x.bfloat16())
    assert not rows.serves(x.T) and not rows.serves(x, x.bfloat16()) and not rows.serves(x.double())
    with torch._subclasses.FakeTensorMode():
        assert not rows.serves(torch.empty(4, 6))
