"""Projections side by side: one product or several, the same numbers, whatever has happened to the module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from anyformer.parts.kernels import native
from anyformer.parts.linear import Linear, SideBySide, adjacent, lay_side_by_side, project


class Three(SideBySide):
    """Three projections of one input, of different widths."""

    def __init__(self, bias: bool = True, kind: type[nn.Linear] = Linear) -> None:
        super().__init__()
        self.a, self.b, self.c = (kind(6, width, bias=bias) for width in (8, 4, 4))
        lay_side_by_side(self.side_by_side())

    def side_by_side(self) -> list[nn.Linear]:
        return [self.a, self.b, self.c]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return project(x, self.side_by_side())


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The width of every product that `project` and linears make."""
    made: list[int] = []
    linear = nn.functional.linear

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        made.append(len(weight))
        return linear(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", counted)
    return made


def separate(module: Three, x: Tensor) -> Sequence[Tensor]:
    """What each projection gives on its own, by the definition."""
    return [x @ linear.weight.T + (0 if linear.bias is None else linear.bias) for linear in module.side_by_side()]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [Linear, nn.Linear])
def test_one_product_serves_all_without_gradients_and_each_its_own_with(
    bias: bool, kind: type[nn.Linear], products: list[int]
) -> None:
    """The same numbers either way; with gradients every weight gets its own."""
    torch.manual_seed(0)
    module, x = Three(bias, kind), torch.randn(20, 3, 6)
    with torch.no_grad():
        fused = module(x)
    assert products == [16]
    apart = module(x)
    assert products == [16, 8, 4, 4]
    for one, other, wanted in zip(fused, apart, separate(module, x), strict=True):
        assert torch.allclose(one, wanted, atol=1e-6) and torch.allclose(other, wanted, atol=1e-6)
    sum(part.sum() for part in apart).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def reload(module: Three) -> Three:
    """New numbers by state dict."""
    module.load_state_dict({name: torch.randn_like(value) for name, value in module.state_dict().items()})
    return module


def train(module: Three) -> Three:
    """A step of an optimizer."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.5)
    sum(part.square().sum() for part in module(torch.randn(2, 6))).backward()
    optimizer.step()
    return module


def replace(module: Three) -> Three:
    """One parameter made new."""
    module.b.weight = nn.Parameter(torch.randn(4, 6))
    return module


def swap(module: Three) -> Three:
    """Two parameters exchanged, so that they lie in the wrong order."""
    module.b.weight, module.c.weight = module.c.weight, module.b.weight
    return module


def assign(module: Three) -> Three:
    """Parameters taken over from a state dict as they are."""
    state = {name: torch.randn_like(value) for name, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


@pytest.mark.parametrize(
    "event",
    [
        lambda m: m.to(torch.bfloat16),
        lambda m: m.double(),
        lambda m: m.to(torch.bfloat16).to(torch.float32),
        copy.deepcopy,
        lambda m: copy.deepcopy(m).to(torch.float64),
        reload,
        train,
        replace,
        swap,
        assign,
        lambda m: m.to("meta").to_empty(device="cpu"),
        lambda m: m.share_memory(),
    ],
    ids=[
        "bfloat16",
        "float64",
        "there and back",
        "copy",
        "copy and cast",
        "load",
        "optimizer",
        "new",
        "swapped",
        "assign",
        "meta",
        "shared",
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_nothing_that_happens_to_a_module_makes_it_wrong(event: Callable[[Three], Three], bias: bool) -> None:
    """What the fused product reads is what the parameters hold, or there is no fused product."""
    torch.manual_seed(0)
    module = event(Three(bias))
    if any(not parameter.isfinite().all() for parameter in module.parameters()):
        reload(module)
    x = torch.randn(30, 6, dtype=module.a.weight.dtype)
    with torch.no_grad():
        for found, wanted in zip(module(x), separate(module, x), strict=True):
            assert torch.allclose(found, wanted, atol=1e-5 if x.dtype != torch.bfloat16 else 5e-2)


@pytest.mark.parametrize("event", [lambda m: m.to(torch.bfloat16), reload, train], ids=["cast", "load", "optimizer"])
def test_casts_loads_and_steps_keep_one_product(event: Callable[[Three], Three], products: list[int]) -> None:
    """Weights stay neighbours through what happens to every model."""
    module = event(Three())
    products.clear()
    with torch.no_grad():
        module(torch.randn(20, 6, dtype=module.a.weight.dtype))
    assert products == [16]


def test_a_hooked_or_replaced_projection_is_asked_itself() -> None:
    """A trace on one of them sees its output; an adapter put in its place is not passed over."""

    class Adapter(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    module, x, seen = Three(), torch.randn(20, 6), []
    handle = module.b.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        out = module(x)
        assert len(seen) == 1 and torch.equal(seen[0], out[1])
        handle.remove()
        adapter = Adapter(6, 4)
        adapter.load_state_dict(module.c.state_dict())
        module.c = adapter
        assert torch.allclose(module(x)[2], separate(module, x)[2] + 1, atol=1e-6)


def test_neighbours_are_recognised_by_where_they_lie() -> None:
    """One storage, one after the other, one dtype, no holes."""
    rows = torch.arange(24.0).view(6, 4)
    joined = adjacent([rows[:2], rows[2:5], rows[5:]])
    assert joined is not None and torch.equal(joined, rows)
    assert adjacent([rows[:2], rows[3:]]) is None
    assert adjacent([rows[2:4], rows[:2]]) is None
    assert adjacent([rows[:, :2], rows[:, 2:]]) is None
    assert adjacent([rows[:2], rows[2:].clone()]) is None
    vectors = torch.arange(5.0)
    joined = adjacent([vectors[:2], vectors[2:]])
    assert joined is not None and torch.equal(joined, vectors)


def test_what_cannot_lie_side_by_side_is_left_alone() -> None:
    """Different dtypes, subclasses of parameters and linears without storage stay as they are."""
    a, b = nn.Linear(4, 4), nn.Linear(4, 4).bfloat16()
    lay_side_by_side([a, b])
    assert adjacent([a.weight, b.weight]) is None
    with torch.device("meta"):
        lay_side_by_side([nn.Linear(4, 4), nn.Linear(4, 4)])


@pytest.mark.parametrize("narrow_pays", [True, False])
def test_under_autocast_one_narrow_copy_of_the_input_serves_all(
    narrow_pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept for the backward pass: the input once in bfloat16, and each weight; a copy in bfloat16 only where it
    is multiplied as that."""
    monkeypatch.setattr(native, "narrow_pays", lambda: narrow_pays)
    linears = [nn.Linear(8, 8, bias=False) for _ in range(3)]
    x = torch.randn(5, 8, requires_grad=True)
    kept: list[Tensor] = []
    note = torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved)
    with note, torch.autocast("cpu", torch.bfloat16):
        out = project(x, linears)
    inputs = {saved.untyped_storage().data_ptr() for saved in kept if saved.shape == (5, 8)}
    weights = {linear.weight.data_ptr() for linear in linears}
    assert len(inputs) == 1 and {s.dtype for s in kept if s.data_ptr() not in weights} == {torch.bfloat16}
    assert any(s.data_ptr() in weights for s in kept) != narrow_pays
    assert {each.dtype for each in out} == {torch.bfloat16}
    sum(each.float().sum() for each in out).backward()  # type: ignore[union-attr]
    assert x.grad is not None and x.grad.dtype == torch.float32
