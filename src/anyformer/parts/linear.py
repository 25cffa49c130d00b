"""Projections that read one input: separate parameters, side by side in memory, so that one product can serve all.

Tensor parallelism, Muon and LoRA want query, key, value, gate and up apart; inference wants one matrix. Both hold here:
`lay_side_by_side` moves their storage into one buffer of which each weight is a view, and `project` uses the whole
buffer wherever it finds the weights still adjacent. Nothing is remembered that a copy or a cast could make stale.

Few rows on a CPU go to the native kernel, which takes in what stands around a product as well: the norm before it, the
activation and the residual stream after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.parts.kernels import native, wide
from anyformer.parts.kernels.wide import product_dtype
from anyformer.parts.norms import Norm


@dataclass(slots=True)
class Matrix:
    """W as the native kernel takes it: its numbers [out, ...], ggml's number for how they are stored, and a bias."""

    data: Tensor
    format: int
    bias: Tensor | None


class Linear(nn.Linear):
    """y = x Wᵀ + b, W [out, in]."""

    def forward(self, input: Tensor) -> Tensor:
        if native.few(input) and (matrix := self.matrix(input.dtype)) is not None:
            return native.linear(input, matrix.data, matrix.format, matrix.bias)
        return many(input, self.weight, self.bias)

    def matrix(self, dtype: torch.dtype) -> Matrix | None:
        """What the native kernel multiplies inputs of `dtype` with; None where it cannot."""
        parameters = self._parameters  # not by their attributes, which a module finds slowly
        weight = parameters["weight"]
        assert weight is not None
        whole = weight.dtype == dtype and type(weight) is nn.Parameter and weight.is_contiguous()
        return Matrix(weight, native.TYPES[dtype], parameters["bias"]) if whole else None

    def reset_parameters(self) -> None:
        # On the meta device there is nothing to draw, and torch takes a second of imports to find that out.
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(nn.Embedding):
    """Rows of a table [V, D] by their index."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()


def adjacent(tensors: Sequence[Tensor]) -> Tensor | None:
    """One view over tensors [n_i, ...] that lie end to end in one storage, [Σ n_i, ...]; None if they do not."""
    first = tensors[0]
    address, storage = first.data_ptr(), first.untyped_storage().data_ptr()
    rows = 0
    for tensor in tensors:
        if tensor.data_ptr() != address or tensor.untyped_storage().data_ptr() != storage:
            return None
        if tensor.dtype != first.dtype or not tensor.is_contiguous():
            return None
        address += tensor.numel() * tensor.element_size()
        rows += tensor.shape[0]
    return first.as_strided((rows, *first.shape[1:]), first.stride())


def matrix_of(linear: nn.Module, dtype: torch.dtype) -> Matrix | None:
    """The matrix of a linear for the native kernel; None for one that was replaced or hooked (an adapter, a trace) and
    wants to be asked itself."""
    asked = linear._forward_hooks or linear._forward_pre_hooks or not hasattr(linear, "matrix")
    return None if asked else linear.matrix(dtype)  # type: ignore[operator]


def added(linear: nn.Module, x: Tensor, residual: Tensor | None) -> Tensor:
    """residual + linear(x), in one operation where the native kernel serves."""
    if residual is None:
        return linear(x)
    if native.few(x) and residual.dtype == x.dtype and (matrix := matrix_of(linear, x.dtype)) is not None:
        return native.linear(x, matrix.data, matrix.format, matrix.bias, residual=residual)
    if is_plain(linear) and wide.serves(x, (linear.weight,)):
        return residual + wide.linears(x, (linear.weight,), (linear.bias,), residual.dtype)[0]
    return residual + linear(x)


def many(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b of many rows."""
    return wide.linears(x, (weight,), (bias,))[0] if wide.serves(x, (weight,)) else F.linear(x, weight, bias)


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether nobody put another in its place, or wants to be asked before or after it."""
    return type(linear) in (nn.Linear, Linear) and not linear._forward_hooks


def project(x: Tensor, linears: Sequence[nn.Module], to_attend: bool = False) -> tuple[Tensor, ...]:
    """Every linear's output for x, from one product where gradients are off and the weights lie side by side. Those
    `to_attend`, which attention would widen again where products are widened, are left so."""
    # One that was replaced or hooked (an adapter, a quantised layer, a trace) wants to be asked itself.
    plain = [linear for linear in linears if is_plain(linear)]
    weights = [linear.weight for linear in plain]
    if torch.is_grad_enabled() and len(plain) == len(linears) and wide.serves(x, weights):
        dtype = torch.float32 if to_attend else torch.bfloat16
        return wide.linears(x, weights, [linear.bias for linear in plain], dtype)
    # Under autocast each would make a narrow copy of x, and keep it for the backward pass.
    x = x.to(product_dtype(x))
    alone = torch.is_grad_enabled() or torch.compiler.is_compiling() or len(plain) < len(linears)
    weight = None if alone else adjacent(weights)
    biases = [linear.bias for linear in plain if linear.bias is not None]
    bias = adjacent(biases) if biases and weight is not None else None
    if weight is None or (biases and bias is None):
        return tuple(linear(x) for linear in linears)
    widths = [linear.out_features for linear in plain]
    return many(x, weight, bias).split(widths, -1)


def lay_side_by_side(linears: Sequence[nn.Module]) -> None:
    """Move the weights (and the biases) of linears with one input into one buffer, unless they already share it."""
    for name in ("weight", "bias"):
        group: list[Any] = [getattr(linear, name, None) for linear in linears]
        if any(p is None or p.is_meta or type(p) is not nn.Parameter for p in group):
            continue
        if len({(p.dtype, p.device) for p in group}) > 1 or adjacent(group) is not None:
            continue
        buffer = torch.cat([p.data for p in group])
        for parameter, view in zip(group, buffer.split([p.shape[0] for p in group])):
            parameter.data = view


def _joined(matrices: Sequence[Matrix]) -> Matrix | None:
    """One matrix over several that lie end to end, biases too; None if they do not."""
    if len({matrix.format for matrix in matrices}) > 1:
        return None
    data = adjacent([matrix.data for matrix in matrices])
    biases = [matrix.bias for matrix in matrices if matrix.bias is not None]
    bias = adjacent(biases) if len(biases) == len(matrices) else None
    return None if data is None or (biases and bias is None) else Matrix(data, matrices[0].format, bias)


class SideBySide(nn.Module):
    """A module some of whose linears read one input; keeps them side by side through casts and moves."""

    #: The addresses of their matrices and biases when they were last found adjacent, and the one view over them. The
    #: view holds the memory, so that nothing else can come to lie there.
    _found: tuple[list[int], Matrix | None] = ([], None)

    def side_by_side(self) -> list[nn.Module]:
        """The linears that read one input."""
        raise NotImplementedError

    def product(self, x: Tensor, norm: Norm | None = None, activation: str = "", gated: bool = False) -> Tensor | None:
        """What they all make of norm(x) by one call of the native kernel, [..., Σ out]; gated, the first half of it
        activated, times the second. None where the kernel cannot."""
        if not native.few(x) or (norm is not None and not norm.fits(x)):
            return None
        matrix = self._whole(x.dtype)
        return (
            None
            if matrix is None
            else native.linear(x, matrix.data, matrix.format, matrix.bias, norm, None, activation, gated)
        )

    def _whole(self, dtype: torch.dtype) -> Matrix | None:
        linears = self.side_by_side()
        matrices = [found for linear in linears if (found := matrix_of(linear, dtype)) is not None]
        if len(matrices) < len(linears):
            return None
        if len(matrices) == 1:
            return matrices[0]
        tensors = [tensor for each in matrices for tensor in (each.data, each.bias) if tensor is not None]
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._found[0]:
            self._found = addresses, _joined(matrices)
        return self._found[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        module: Any = super()._apply(fn, recurse)
        self._found = ([], None)
        lay_side_by_side(self.side_by_side())
        return module
