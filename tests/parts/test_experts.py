"""Mixtures of experts: the sorted path and the dense one are the definition."""

from __future__ import annotations

from itertools import product
from typing import Literal
from unittest import mock

import pytest
import torch
from gradients import draw, gradcheck
from torch import Tensor

from anyformer import spec
from anyformer.checkpoints.quantizing import quantize
from anyformer.parts.blocks import FORMATS
from anyformer.parts.context import Context
from anyformer.parts.experts import Experts
from anyformer.parts.feedforward import ACTIVATIONS
from anyformer.parts.kernels import native
from anyformer.parts.masks import Tokens
from anyformer.parts.quantized import QuantizedMatrices

SHARED = [{}, {"shared_hidden": 5}, {"shared_hidden": 8, "shared_gate": True}]
FORMS = [
    {"experts": experts, "top_k": top_k, "gated": gated, "normalize": normalize, **shared}
    for (experts, top_k), gated, normalize, shared in product(
        [(1, 1), (4, 1), (5, 3), (3, 3)], (True, False), (True, False), SHARED
    )
]


def one_by_one(part: Experts, x: Tensor, form: dict) -> Tensor:
    """The definition, a token at a time: its best experts, weighted, and what every token passes through."""
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        shares = (part.router.weight @ token).softmax(0)
        best = sorted(range(part.experts), key=lambda e: -shares[e].item())[: part.top_k]
        total = sum(shares[e] for e in best) if form["normalize"] else 1.0
        out = torch.zeros_like(token)
        for e in best:
            hidden = part.up[e] @ token
            activation = ACTIVATIONS["silu"]
            hidden = activation(hidden) if part.gate is None else activation(part.gate[e] @ token) * hidden
            out = out + shares[e] / total * (part.down[e] @ hidden)
        if part.shared is not None:
            extra = part.shared(token, Context(Tokens(1, start=0)))
            out = out + (extra if part.shared_gate is None else extra * torch.sigmoid(part.shared_gate(token)))
        rows.append(out)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_both_paths_are_the_definition(form: dict) -> None:
    """Dense in float64; grouped products over sorted tokens in float32, outputs and every gradient, however unevenly
    the tokens fall on the experts."""
    torch.manual_seed(0)
    mixture = spec.MixtureOfExperts(hidden=8, **form)
    part = draw(Experts(mixture, 4))
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    context = Context(Tokens(7, start=0))
    wanted = one_by_one(part, x, form)
    assert not part.groupable(x)
    assert torch.allclose(part(x, context), wanted)
    part.float()
    assert part.groupable(x.float())
    outcomes = []
    for groupable in (True, False):
        part.groupable = lambda _, answer=groupable: answer  # type: ignore[method-assign]
        stream = x.float().requires_grad_()
        out = part(stream, context)
        assert torch.allclose(out.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.detach().abs().max()))
        outcomes.append(torch.autograd.grad(out.square().sum(), [stream, *part.parameters()]))
    largest = max(float(gradient.abs().max()) for gradient in outcomes[1])
    for grouped, dense in zip(*outcomes, strict=True):
        assert torch.allclose(grouped, dense, rtol=1e-3, atol=1e-5 * largest)


class BiasedExperts(spec.RoutedExperts):
    """A mixture as a family may have one of its own: every matrix has a bias, the router too."""

    kind: Literal["biased"] = "biased"

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        E, F = self.experts, self.hidden
        biases = {"router.bias": (E,), "gate_bias": (E, F), "up_bias": (E, F), "down_bias": (E, dim)}
        return {**super().shapes(dim), **biases, "strength": (E,)}


class Doubtful(Experts):
    """Each expert has a strength of its own, and its two inward products are added."""

    strength: torch.nn.Parameter

    def route(self, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shares_NE = self.router(x_ND).sigmoid() * self.strength
        weight_NK, chosen_NK = shares_NE.topk(self.top_k, -1)
        return shares_NE, weight_NK, chosen_NK

    def activate(self, up: Tensor, gate: Tensor | None) -> Tensor:
        assert gate is not None
        return gate + up


def test_a_mixture_of_a_familys_own() -> None:
    """Routing, activation, biases and parameters of a subclass's own hold on both paths, gradients included."""
    torch.manual_seed(0)
    mixture = BiasedExperts(experts=5, top_k=2, hidden=8)
    part = draw(Doubtful(mixture, 4))
    assert {name: tuple(p.shape) for name, p in part.named_parameters()} == mixture.shapes(4)
    x = torch.randn(1, 7, 4, dtype=torch.float64)
    rows = []
    for token in x[0]:
        shares = torch.sigmoid(part.router.weight @ token + part.router.bias) * part.strength
        row = torch.zeros_like(token)
        for e in sorted(range(5), key=lambda e: -shares[e].item())[:2]:
            hidden = part.gate[e] @ token + part.gate_bias[e] + part.up[e] @ token + part.up_bias[e]
            row = row + shares[e] * (part.down[e] @ hidden + part.down_bias[e])
        rows.append(row)
    context = Context(Tokens(7, start=0))
    assert torch.allclose(part(x, context), torch.stack(rows))
    leaves = x.requires_grad_(), *part.parameters()
    dense = torch.autograd.grad(part(x, context).square().sum(), leaves)
    part.float()
    leaves = x.detach().float().requires_grad_(), *part.parameters()
    grouped = torch.autograd.grad(part(leaves[0], context).square().sum(), leaves)
    largest = max(float(gradient.abs().max()) for gradient in dense)
    for one, other in zip(grouped, dense, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-3, atol=1e-5 * largest)


#: Where one expert gets all of the weight, the router has no gradient.
CHOOSING = [form for form in FORMS if form["top_k"] > 1 or (form["experts"] > 1 and not form["normalize"])]


@pytest.mark.parametrize("form", CHOOSING[::4], ids=str)
def test_gradients_are_right(form: dict) -> None:
    """gradcheck of the dense path, router and shared expert included."""
    torch.manual_seed(1)
    part = Experts(spec.MixtureOfExperts(hidden=3, **form), 2).double()
    draw(part, 0.7)
    x = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    gradcheck(part, lambda x: part(x, Context(Tokens(4, start=0))), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_that_nobody_chose_cost_nothing_and_break_nothing(dtype: torch.dtype) -> None:
    """All tokens to one of five: the other groups are empty, forward and backward."""
    torch.manual_seed(0)
    part = Experts(spec.MixtureOfExperts(experts=5, top_k=1, hidden=8), 8)
    draw(part).to(dtype)
    with torch.no_grad():
        part.router.weight.zero_()
        part.router.weight[3] = 1
    x = torch.rand(1, 6, 8, dtype=dtype, requires_grad=True)
    assert part.groupable(x)
    out = part(x, Context(Tokens(6, start=0)))
    out.sum().backward()
    assert out.isfinite().all() and part.up.grad is not None
    assert part.up.grad[3].any() and not part.up.grad[[0, 1, 2, 4]].any()


def balance(part: Experts, x: Tensor, valid: Tensor | None) -> Tensor:
    """What a forward pass in training hands up."""
    context = Context(
        Tokens(x.shape[1], start=0) if valid is None else Tokens(x.shape[1], position=valid.long(), valid=valid)
    )
    part.train()(x, context)
    (loss,) = context.auxiliary
    return loss.detach()


def test_the_balance_loss_is_its_formula_and_ignores_padding() -> None:
    """E · Σ f_e · P_e times its coefficient; padding changes nothing, wherever it stands and whatever it holds."""
    torch.manual_seed(0)
    part = draw(Experts(spec.MixtureOfExperts(experts=4, top_k=2, hidden=8, balance=0.3), 4))
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    shares = part.router(x).softmax(-1).flatten(0, 1)
    f, p = [0.0] * 4, [0.0] * 4
    for token in shares.tolist():
        for e in sorted(range(4), key=lambda e: -token[e])[:2]:
            f[e] += 1 / 2 / len(shares)
        p = [a + b / len(shares) for a, b in zip(p, token)]
    wanted = 0.3 * 4 * sum(a * b for a, b in zip(f, p))
    assert float(balance(part, x, None)) == pytest.approx(wanted)
    assert float(balance(part, x, torch.ones(2, 5, dtype=torch.bool))) == pytest.approx(wanted)
    padded = torch.full((2, 9, 4), 50.0, dtype=torch.float64)
    valid = torch.zeros(2, 9, dtype=torch.bool)
    padded[0, 4:], valid[0, 4:] = x[0], True
    padded[1, [0, 2, 3, 5, 8]], valid[1, [0, 2, 3, 5, 8]] = x[1], True
    assert float(balance(part, padded, valid)) == pytest.approx(wanted)
    assert float(balance(part, padded, torch.zeros_like(valid))) == 0.0


def test_the_balance_loss_is_for_training() -> None:
    """None in evaluation, none where its coefficient is zero; it is one when the router is undecided and even."""
    x = torch.randn(1, 5, 4)
    even = draw(Experts(spec.MixtureOfExperts(experts=4, top_k=4, hidden=8, balance=1.0), 4)).float()
    torch.nn.init.zeros_(even.router.weight)
    assert float(balance(even, x, None)) == pytest.approx(1.0)
    for part in (even.eval(), Experts(spec.MixtureOfExperts(experts=4, top_k=2, hidden=8), 4)):
        context = Context(Tokens(5, start=0))
        part(x, context)
        assert context.auxiliary == []


def test_under_autocast_experts_multiply_in_its_dtype() -> None:
    """As linear layers do: no matrix of an expert meets its tokens in float32; near what those that do give."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    mixture = spec.MixtureOfExperts(experts=4, top_k=2, hidden=24)
    module = Experts(mixture, 16)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(1))
    wanted = module(x, Context(Tokens(5, start=0)))
    kept: list[Tensor] = []
    note = torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved) or saved, lambda saved: saved)
    with note, torch.autocast("cpu", torch.bfloat16):
        found = module(x, Context(Tokens(5, start=0)))
    matrices = [saved for saved in kept if saved.dim() == 3 and saved.shape[0] == 4]
    assert matrices and {saved.dtype for saved in matrices} == {torch.bfloat16}
    assert found.dtype == torch.float32
    assert (found - wanted).abs().max() < 0.03 * wanted.abs().max()


#: What the rounding of inputs to 8 bits may change, of the largest number.
ROUNDING = {"Q8_0": 0.02, "Q4_0": 0.02, "Q4_K": 0.02}


@pytest.mark.parametrize("name", ROUNDING)
@torch.no_grad()
def test_experts_in_blocks_are_their_dequantised_twins(name: str) -> None:
    """By the native kernel within its rounding of inputs, and without it to float32's own precision, few or many.
    Some matrices may stay in floats."""
    torch.manual_seed(0)
    width = FORMATS[name].elements
    for experts, top_k, gated, tokens in ((5, 2, True, 1), (4, 3, False, 7), (3, 1, True, 90), (6, 4, True, 90)):
        mixture = spec.MixtureOfExperts(experts=experts, top_k=top_k, hidden=width, gated=gated)
        part, twin = Experts(mixture, width), Experts(mixture, width)
        for parameter in part.parameters():
            parameter.normal_(0, 0.1)
        twin.load_state_dict(part.state_dict())
        for child in ("gate", "up") if gated else ("up", "down"):
            blocks = quantize(getattr(part, child), FORMATS[name], search=False)
            getattr(twin, child).copy_(blocks.dequantize())
            delattr(part, child)
            part.add_module(child, QuantizedMatrices(blocks))
        x, context = torch.randn(1, tokens, width), Context(Tokens(tokens, start=0))
        found, wanted = part(x, context), twin.every(x[0], *routed(twin, x[0])).view_as(x)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < ROUNDING[name]
        with mock.patch.object(native, "library", lambda: None):
            found = part(x, context)
        assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_few_tokens_go_through_their_experts_alone(dtype: torch.dtype) -> None:
    """The path of decoding, in floats, by the native kernel and one by one: what every expert's part in the reference
    comes to; experts that nobody chose are not read."""
    torch.manual_seed(0)
    part = Experts(BiasedExperts(experts=5, top_k=2, hidden=24), 20)
    for parameter in part.parameters():
        parameter.normal_(0, 0.3)
    x = torch.randn(3, 20)
    weight, chosen = routed(part, x)
    wanted = part.every(x, weight, chosen)
    part.to(dtype)
    for index in set(range(5)) - set(chosen.flatten().tolist()):
        part.up[index] = torch.nan
    bound = 1e-5 if dtype == torch.float32 else 0.03
    for found in (part.few(x.to(dtype), weight, chosen), part.apart(x.to(dtype), weight.to(dtype), chosen)):
        assert found is not None
        assert float((found.float() - wanted).abs().max() / wanted.abs().max()) < bound


@torch.no_grad()
def test_what_the_native_kernel_does_not_know_it_is_not_asked_for() -> None:
    """An activation of a family's own, matrices of another type, or none that lie together: by torch, and right."""
    torch.manual_seed(0)
    mixture = BiasedExperts(experts=5, top_k=2, hidden=8)
    x, context = torch.randn(1, 3, 4), Context(Tokens(3, start=0))
    own, typed, apart = Doubtful(mixture, 4), Experts(mixture, 4), Experts(mixture, 4)
    for part in (own, typed, apart):
        draw(part).float()
    typed.double().router.float()
    apart.up.data = apart.up.data.transpose(1, 2).contiguous().transpose(1, 2)
    for part in (own, apart):
        weight, chosen = routed(part, x[0])
        assert part.few(x[0], weight, chosen) is None
        assert torch.allclose(part(x, context)[0], part.every(x[0], weight, chosen), rtol=1e-4, atol=1e-4)
    assert typed.few(x[0], *routed(typed, x[0])) is None


def routed(part: Experts, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of the chosen experts, and which they are."""
    _, weight, chosen = part.route(x_ND)
    return weight, chosen
