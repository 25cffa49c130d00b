"""Attention of many queries on CPUs, natively, where every query sees one span of the keys: causal, windowed, of packed
documents or of everything. What is hidden is left out, no weight is kept for the backward pass, and heads are read and
written where the products around them have them (`native/spans.cpp`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anyformer.parts.kernels import native
from anyformer.parts.kernels.rows import transformed
from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible


def limits(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None."""
    if torch.is_autocast_enabled(q.device.type) or transformed():
        return "it is not for autocast, compiled code or torch.func"
    return refuses(q.dtype, visible, scores)


def refuses(dtype: torch.dtype, visible: Visible, scores: Scores) -> str | None:
    """The same, for queries of `dtype` that are not there yet."""
    if torch.device(visible.q.device or "cpu").type != "cpu" or dtype != torch.float32 or native.library() is None:
        return "it multiplies float32 on a CPU, natively"
    if scores.soft_cap is not None:
        return "it has no soft cap"
    if scores.sinks is not None:
        return "it has no sinks"
    if scores.bias is not None:
        return "it adds nothing to scores"
    if scores.dropout > 0:
        return "it has no dropout"
    if visible.spans is None:
        return "a query may see more than one span of the keys"
    return None


def pays(q: Tensor, k: Tensor) -> bool:
    """Whether there is work for every thread: a thread takes a head, on the way back with all of its group."""
    heads = k.shape[1] if torch.is_grad_enabled() else q.shape[1]
    return q.shape[0] * heads >= torch.get_num_threads()


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """[B, H, T, V] from queries [B, H, T, C], keys [B, K, S, C] and values [B, K, S, V]."""
    spans = visible.spans
    assert spans is not None
    return _Spans.apply(q, k, v, *spans, scores.scale)


class _Spans(torch.autograd.Function):
    """What `native.spans` makes, and `native.spans_back` on the way back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, scale: float) -> Tensor:
        q, k, v = _channels_together(q), _channels_together(k), _channels_together(v)
        y, log_sums = native.spans(q, k, v, first, last, scale)
        ctx.save_for_backward(q, k, v, y, log_sums, first, last)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, y, log_sums, first, last = ctx.saved_tensors
        gradients = native.spans_back(q, k, v, y, log_sums, _channels_together(d_y), first, last, ctx.scale)
        return *gradients, None, None, None


def _channels_together(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
