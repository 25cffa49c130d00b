"""Gradients of a whole module, checked numerically."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def draw(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """The module in float64 with every parameter drawn, so that none is zero, one, or uninitialised."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, scale)
    return module


def gradcheck(module: nn.Module, call: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Numerical and analytical gradients of call(*inputs) agree, for the inputs and every parameter of the module;
    and every parameter has one that is not zero."""
    names = [name for name, _ in module.named_parameters()]
    parameters = [parameter for _, parameter in module.named_parameters()]

    def function(*values: Tensor) -> Tensor:
        given = dict(zip(names, values[len(inputs) :], strict=True))
        with torch.nn.utils.stateless._reparametrize_module(module, given):
            return call(*values[: len(inputs)])

    assert torch.autograd.gradcheck(function, (*inputs, *parameters))
    gradients = torch.autograd.grad(function(*inputs, *parameters).square().sum(), parameters)
    assert all(gradient.any() for gradient in gradients), names
