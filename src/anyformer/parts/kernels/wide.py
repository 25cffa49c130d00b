"""Products of bfloat16 numbers on CPUs that multiply float32 faster: what is kept and passed on is bfloat16, what is
multiplied is widened first. They are the same products, added up in float32 as well.

Under autocast the weights stay as they are, in float32, and so do their gradients: both are nearer to the exact ones
than where they are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anyformer.parts.kernels import native

#: Rows from which on widening a matrix costs less than it gives, and how many of its numbers are widened at a time.
ROWS, TILE = 96, 1 << 22


def product_dtype(x: Tensor) -> torch.dtype:
    """What products of x count as: those of float32 are of the dtype of autocast, where that is on."""
    device = x.device.type
    narrow = x.dtype == torch.float32 and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if narrow else x.dtype


def pays(x: Tensor) -> bool:
    """Whether products of x are bfloat16's, on a CPU that multiplies float32 faster."""
    return (
        x.device.type == "cpu"
        and product_dtype(x) == torch.bfloat16
        and not torch.compiler.is_compiling()
        and not native.narrow_pays()
    )


def serves(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether `linears` is the way from x [..., in] through each W [out, in]: not where they would be widened for few
    rows, nor where they lie over many processes."""
    rows = x.numel() // x.shape[-1]
    plain = all(type(weight) in (Tensor, nn.Parameter) for weight in weights)
    return pays(x) and plain and (rows >= ROWS or all(weight.dtype == torch.float32 for weight in weights))


def linears(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: torch.dtype = torch.bfloat16
) -> tuple[Tensor, ...]:
    """Each x Wᵀ + b [..., out] in `dtype`, from x [..., in], W [out, in] and b [out], bfloat16 or float32."""
    with torch.autocast("cpu", enabled=False):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights, *biases)):
            return _Linears.apply(x, dtype, len(weights), *weights, *biases)
        wide = x.float()
        return tuple(_tiled(wide, weight, bias, dtype) for weight, bias in zip(weights, biases, strict=True))


def _tiled(wide: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The product, a tile of W widened after the other."""
    y = wide.new_empty(*wide.shape[:-1], weight.shape[0], dtype=dtype)
    step = weight.shape[0] if weight.dtype == torch.float32 else max(1, TILE // weight.shape[1])
    for start in range(0, weight.shape[0], step):
        rows = slice(start, start + step)
        y[..., rows] = F.linear(wide, weight[rows].float(), None if bias is None else bias[rows].float())
    return y


class _Linears(torch.autograd.Function):
    """y = x Wᵀ + b     dx = Σ dy W     dW = dyᵀ x     db = Σ dy; of x its bfloat16 numbers are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, count: int, *matrices: Tensor | None) -> tuple[Tensor, ...]:
        weights, biases = cast("tuple[Tensor, ...]", matrices[:count]), matrices[count:]
        ctx.save_for_backward(x.to(torch.bfloat16), *weights)
        ctx.x_dtype, ctx.bias_dtypes = x.dtype, [None if bias is None else bias.dtype for bias in biases]
        wide = x.float()
        return tuple(
            F.linear(wide, weight.float(), None if bias is None else bias.float()).to(dtype)
            for weight, bias in zip(weights, biases, strict=True)
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *come_back: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with torch.autocast("cpu", enabled=False):  # who asks for gradients within one has them made so as well
            return _Linears._gradients(ctx, come_back)

    @staticmethod
    def _gradients(ctx: Any, come_back: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        of_x, _, _, *of_matrices = ctx.needs_input_grad
        of_weights = of_matrices[: len(weights)]
        each_dy = [dy.reshape(-1, dy.shape[-1]).float() for dy in come_back]
        dx = None
        if of_x:
            dx = each_dy[0] @ weights[0].float()
            for dy, weight in zip(each_dy[1:], weights[1:], strict=True):
                dx.addmm_(dy, weight.float())
            dx = dx.to(ctx.x_dtype).view_as(x)
        wide = x.reshape(-1, x.shape[-1]).float() if any(of_weights) else x
        dw = [
            (dy.T @ wide).to(weight.dtype) if wanted else None
            for dy, weight, wanted in zip(each_dy, weights, of_weights, strict=True)
        ]
        db = [
            dy.sum(0).to(dtype) if wanted else None
            for dy, dtype, wanted in zip(each_dy, ctx.bias_dtypes, of_matrices[len(weights) :], strict=True)
        ]
        return dx, None, None, *dw, *db
