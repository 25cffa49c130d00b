"""The native kernels of heads that each have a matrix of their own, as operators of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.parts.kernels.native import loading as native
from anyformer.parts.kernels.native.calls import _make, _operator, _outer, keep


def _heads(x: Tensor, weight: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    y = _fake_heads(x, weight, transposed, dtype)
    outer = _outer(x)
    assert outer is not None
    heads, inputs = x.shape[-2:]
    call = native.Heads(
        x.data_ptr(),
        weight.data_ptr(),
        y.data_ptr(),
        x.numel() // (heads * inputs),
        heads,
        inputs,
        y.shape[-1],
        outer,
        x.stride(-2) if heads > 1 else 0,
        native.TYPES[x.dtype],
        native.TYPES[dtype],
        transposed,
        torch.get_num_threads(),
    )
    _make(call, x, weight, y)
    return y


def _fake_heads(x: Tensor, weight: Tensor, transposed: bool, dtype: torch.dtype) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[2 if transposed else 1], dtype=dtype)


_run_heads = _operator(
    "heads(Tensor x, Tensor weight, bool transposed, ScalarType dtype) -> Tensor", _heads, _fake_heads
)


def heads(x: Tensor, weight: Tensor, transposed: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    """W_h x_h of each head, [..., heads, out], of few rows x [..., heads, in] and matrices [heads, out, in], or,
    `transposed`, W_hᵀ x_h of matrices [heads, in, out]; all of one type, the result of any, if none is named of theirs.

    x may be a view; its channels lie together.
    """
    x = x if _outer(x) is not None else x.contiguous()
    return _run_heads(x, weight.contiguous(), transposed, dtype or x.dtype)


def joined(*parts: Tensor) -> Tensor:
    """Heads [B, T, heads, C_i] of few tokens one after the other, [B, T, heads, ΣC_i]."""
    widths = [part.shape[-1] for part in parts]
    whole = parts[0].new_empty(*parts[0].shape[:-1], sum(widths))
    for part, place in zip(parts, whole.split(widths, -1), strict=True):
        keep(part.transpose(1, 2), place.transpose(1, 2), None, 0)
    return whole
