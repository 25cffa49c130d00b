"""The feed-forward, plain and gated, with every activation."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from gradients import draw, gradcheck

from anyformer import spec
from anyformer.parts.context import Context
from anyformer.parts.feedforward import ACTIVATIONS, FeedForward
from anyformer.parts.masks import Tokens
from anyformer.spec.mixers import Activation

CONTEXT = Context(Tokens(3, start=0))

FORMULAS = {
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


def test_every_activation_of_the_spec_has_a_formula() -> None:
    """What a spec may name is what exists."""
    assert set(get_args(Activation)) == set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_are_their_formulas(name: str) -> None:
    """In plain Python over [-6, 6]."""
    x = torch.linspace(-6, 6, 101, dtype=torch.float64)
    assert ACTIVATIONS[name](x).tolist() == pytest.approx([FORMULAS[name](value) for value in x.tolist()], abs=1e-12)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("name", FORMULAS)
def test_feed_forward_is_its_formula_with_right_gradients(name: str, gated: bool, bias: bool) -> None:
    """down(act(up x)), or down(act(gate x) · up x); gradcheck of all of them; the same without gradients."""
    torch.manual_seed(0)
    part = draw(FeedForward(spec.FeedForward(hidden=5, activation=name, gated=gated, bias=bias), 3))
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    inward = part.up(x) if part.gate is None else part.gate(x)
    hidden = ACTIVATIONS[name](inward)
    wanted = part.down(hidden if part.gate is None else hidden * part.up(x))
    assert torch.allclose(part(x, CONTEXT), wanted)
    with torch.no_grad():
        assert torch.allclose(part(x, CONTEXT), wanted)
    gradcheck(part, lambda x: part(x, CONTEXT), x)


def test_dropout_is_between_the_matrices_in_training_only() -> None:
    """Of ones through identities, hidden units are dropped whole and the rest scaled."""
    part = FeedForward(spec.FeedForward(hidden=2000, activation="relu", dropout=0.25), 2000)
    torch.nn.init.eye_(part.up.weight)
    torch.nn.init.eye_(part.down.weight)
    out = part(torch.ones(1, 3, 2000), CONTEXT)
    assert out.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert 0.22 < float((out == 0).float().mean()) < 0.28
    assert part.eval()(torch.ones(1, 3, 2000), CONTEXT).eq(1).all()
