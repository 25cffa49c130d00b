"""Norms against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from anyformer import spec
from anyformer.parts.norms import Norm, norm_of

FORMS = [
    spec.Norm(kind="layer", bias=True),
    spec.Norm(kind="layer"),
    spec.Norm(kind="layer", weight=False, eps=1e-3),
    spec.Norm(kind="layer", bias=True, unit_offset=True),
    spec.Norm(kind="rms", eps=1e-6),
    spec.Norm(kind="rms", weight=False),
    spec.Norm(kind="rms", unit_offset=True, eps=1e-2),
]


def drawn(form: spec.Norm, dim: int, dtype: torch.dtype = torch.float64) -> Norm:
    """A norm whose weights are no ones."""
    norm = Norm(form, dim).to(dtype)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_norms_are_their_formulas(form: spec.Norm) -> None:
    """In plain Python, number by number, in float64."""
    torch.manual_seed(0)
    norm = drawn(form, 5)
    x = torch.randn(3, 5, dtype=torch.float64) * 3 + 1
    weight = [1.0] * 5 if norm.weight is None else norm.weight.tolist()
    weight = [1 + w for w in weight] if form.unit_offset else weight
    bias = [0.0] * 5 if norm.bias is None else norm.bias.tolist()
    for row, found in zip(x.tolist(), norm(x).tolist(), strict=True):
        mean = sum(row) / 5 if form.kind == "layer" else 0.0
        root = math.sqrt(sum((value - mean) ** 2 for value in row) / 5 + form.eps)
        wanted = [(value - mean) / root * w + b for value, w, b in zip(row, weight, bias, strict=True)]
        assert found == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_gradients_are_right(form: spec.Norm) -> None:
    """gradcheck in float64, for the input and every weight."""
    torch.manual_seed(0)
    norm = drawn(form, 4)
    names, values = zip(*norm.named_parameters()) if list(norm.parameters()) else ((), ())
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, dict(zip(names, weights, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *values))


@pytest.mark.parametrize("form", FORMS, ids=repr)
def test_bfloat16_rounds_only_what_comes_in_and_out(form: spec.Norm) -> None:
    """Statistics are float32: of 4,096 numbers far from zero the result is the float32 one, rounded."""
    torch.manual_seed(0)
    norm = drawn(form, 4096, torch.bfloat16)
    x = (torch.randn(2, 4096) + 8).bfloat16()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    wanted = norm.float()(x.float())
    assert (found.float() - wanted).abs().max() <= 2**-7 * wanted.abs().max()


def test_a_small_offset_weight_survives_bfloat16() -> None:
    """1 + 2^-9 is not a bfloat16; the factor is formed in float32, so that it still counts before rounding out."""
    norm = Norm(spec.Norm(kind="rms", unit_offset=True), 64).bfloat16()
    with torch.no_grad():
        assert norm.weight is not None
        norm.weight.fill_(2**-9)
    x = torch.linspace(-3, 3, 64).bfloat16()[None]
    plain = torch.nn.functional.rms_norm(x.float(), (64,), eps=1e-5)
    assert torch.equal(norm(x), (plain * (1 + 2**-9)).bfloat16())
    assert not torch.equal(norm(x), plain.bfloat16())


def test_fresh_norms_change_no_scale() -> None:
    """A stored weight of one, or of zero where one is added."""
    x = torch.randn(2, 8)
    for kind in ("layer", "rms"):
        plain = Norm(spec.Norm(kind=kind, weight=False), 8)(x)
        assert torch.allclose(Norm(spec.Norm(kind=kind), 8)(x), plain)
        assert torch.allclose(Norm(spec.Norm(kind=kind, unit_offset=True), 8)(x), plain)
    assert norm_of(None, 8) is None
