"""What stands between the products of many rows, on CPUs: RMS norms and activations, each number read once on the way
there and once on the way back, where torch's operations read and write it again for every term (`native/rows.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.parts.kernels import native


def transformed() -> bool:
    """Whether operations are being compiled, or batched and differentiated by torch.func, which need torch's own."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()  # type: ignore[attr-defined]


def serves(*tensors: Tensor) -> bool:
    """Whether the native kernels are the ones for these tensors, all of one shape: plain ones on a CPU, contiguous."""
    first = tensors[0]
    return (
        all(type(x) in (Tensor, nn.Parameter) and x.dtype == first.dtype and x.is_contiguous() for x in tensors)
        and first.device.type == "cpu"
        and first.dtype in native.TYPES
        and not transformed()
        and native.library() is not None
    )


def normed(x: Tensor, weight: Tensor | None, kind: int, eps: float, plain: Callable[..., Tensor]) -> Tensor:
    """The RMS norm of x [..., D] with a weight [D], float32, of a kind that `native/loading.py` names;
    `plain(x, weight)` is the same in torch's operations."""
    return _Norm.apply(x, weight, kind, eps, plain)


def activated(x: Tensor, up: Tensor | None, activation: str, plain: Callable[..., Tensor]) -> Tensor:
    """act(x) · up, or act(x); `plain` is act in torch's operations."""
    return _Activated.apply(x, up, activation, plain)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, kind: int, eps: float, plain: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.about, ctx.plain = (kind, eps), plain
        return native.norm_rows(x, weight, kind, eps)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable(ctx, (x, weight), lambda: ctx.plain(x, weight), d_y), None, None, None
        d_x, d_weight = native.norm_rows_back(x, weight, d_y.contiguous(), *ctx.about)
        return d_x, None if weight is None else d_weight, None, None, None


class _Activated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, up: Tensor | None, activation: str, plain: Any) -> Tensor:
        ctx.save_for_backward(x, up)
        ctx.activation, ctx.plain = activation, plain
        return native.activated_rows(x, up, activation)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, up = ctx.saved_tensors
        if torch.is_grad_enabled():
            gated = (lambda: ctx.plain(x)) if up is None else (lambda: ctx.plain(x) * up)
            found = _differentiable(ctx, (x, up), gated, d_y)
        else:
            found = native.activated_rows_back(x, up, d_y.contiguous(), ctx.activation)
        return *found, None, None


def _differentiable(
    ctx: Any, inputs: tuple[Tensor | None, ...], plain: Callable[[], Tensor], d_y: Tensor
) -> list[Tensor | None]:
    """The gradients in torch's operations, for whoever differentiates them once more."""
    needed = ctx.needs_input_grad[: len(inputs)]
    wanted = [x for x, need in zip(inputs, needed, strict=True) if need and x is not None]
    found = iter(torch.autograd.grad(plain(), wanted, d_y, create_graph=True))
    return [next(found) if need else None for need in needed]
