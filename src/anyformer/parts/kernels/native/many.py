"""The calls of many rows as operators of torch: attention over spans of the keys, RMS norms and activations, each with
its gradients. They are not made again (`tape.py`): no step of decoding has so many rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.parts.kernels.native import loading as native
from anyformer.parts.kernels.native.calls import _address, _make_once, _operator


def _spans(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    y, log_sums = _fake_spans(q, k, v, first, last, scale)
    _over_spans(q, k, v, y, log_sums, first, last, (), scale)
    return y, log_sums


def _fake_spans(q: Tensor, k: Tensor, v: Tensor, first: Any, last: Any, scale: Any) -> tuple[Tensor, Tensor]:
    B, H, T, _ = q.shape
    return q.new_empty(B, T, H, v.shape[3]).transpose(1, 2), q.new_empty(B, T, H)


def _spans_back(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    log_sums: Tensor,
    d_y: Tensor,
    first: Tensor,
    last: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = _fake_spans_back(q, k, v)
    _over_spans(q, k, v, y, log_sums, first, last, (d_y, *gradients), scale)
    return gradients


def _fake_spans_back(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = (x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (q, k, v))
    return d_q, d_k, d_v


def _over_spans(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    log_sums: Tensor,
    first: Tensor,
    last: Tensor,
    back: Sequence[Tensor],
    scale: float,
) -> None:
    B, H, T, C = q.shape
    call = native.Spans(
        *(x.data_ptr() for x in (q, k, v, y, log_sums, first, last)),
        *([x.data_ptr() for x in back] or [None] * 4),
        B,
        H,
        k.shape[1],
        T,
        k.shape[2],
        C,
        v.shape[3],
        T if len(first) > 1 else 0,
        *(x.stride()[:3] for x in (q, k, v, back[0] if back else q)),
        torch.get_num_threads(),
        scale,
    )
    _make_once(call)


def _norm_rows(x: Tensor, weight: Tensor | None, kind: int, eps: float) -> Tensor:
    y = torch.empty_like(x)
    _normalize((x.data_ptr(), _address(weight), y.data_ptr(), None, None, None), x, kind, eps)
    return y


def _fake_norm_rows(x: Tensor, weight: Any, kind: Any, eps: Any) -> Tensor:
    return torch.empty_like(x)


def _norm_rows_back(x: Tensor, weight: Tensor | None, d_y: Tensor, kind: int, eps: float) -> tuple[Tensor, Tensor]:
    d_x, d_weight = _fake_norm_rows_back(x)
    back = d_y.data_ptr(), d_x.data_ptr(), d_weight.data_ptr()
    _normalize((x.data_ptr(), _address(weight), None, *back), x, kind, eps)
    return d_x, d_weight


def _fake_norm_rows_back(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(x.shape[-1])


def _normalize(addresses: tuple[int | None, ...], x: Tensor, kind: int, eps: float) -> None:
    width = x.shape[-1]
    _make_once(native.NormRows(*addresses, x.numel() // width, width, kind, torch.get_num_threads(), eps))


def _activated_rows(x: Tensor, up: Tensor | None, activation: str) -> Tensor:
    y = torch.empty_like(x)
    addresses = (x.data_ptr(), _address(up), y.data_ptr(), None, None, None)
    _activate(addresses, x, activation)
    return y


def _fake_activated_rows(x: Tensor, up: Any, activation: Any) -> Tensor:
    return torch.empty_like(x)


def _activated_rows_back(x: Tensor, up: Tensor | None, d_y: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    d_x, d_up = _fake_activated_rows_back(x, up, d_y, activation)
    addresses = (x.data_ptr(), _address(up), None, d_y.data_ptr(), d_x.data_ptr(), d_up.data_ptr())
    _activate(addresses, x, activation)
    return d_x, d_up


def _fake_activated_rows_back(x: Tensor, up: Tensor | None, d_y: Any, activation: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if up is None else torch.empty_like(up)


def _activate(addresses: tuple[int | None, ...], x: Tensor, activation: str) -> None:
    kinds = native.TYPES[x.dtype], native.ACTIVATIONS[activation]
    _make_once(native.ActivatedRows(*addresses, x.numel(), *kinds, torch.get_num_threads()))


_run_spans = _operator(
    "spans(Tensor q, Tensor k, Tensor v, Tensor first, Tensor last, float scale) -> (Tensor, Tensor)",
    _spans,
    _fake_spans,
)
_run_spans_back = _operator(
    "spans_back(Tensor q, Tensor k, Tensor v, Tensor y, Tensor log_sums, Tensor d_y, Tensor first, Tensor last, "
    "float scale) -> (Tensor, Tensor, Tensor)",
    _spans_back,
    _fake_spans_back,
)
_run_norm_rows = _operator(
    "norm_rows(Tensor x, Tensor? weight, int kind, float eps) -> Tensor", _norm_rows, _fake_norm_rows
)
_run_norm_rows_back = _operator(
    "norm_rows_back(Tensor x, Tensor? weight, Tensor d_y, int kind, float eps) -> (Tensor, Tensor)",
    _norm_rows_back,
    _fake_norm_rows_back,
)
_run_activated_rows = _operator(
    "activated_rows(Tensor x, Tensor? up, str activation) -> Tensor", _activated_rows, _fake_activated_rows
)
_run_activated_rows_back = _operator(
    "activated_rows_back(Tensor x, Tensor? up, Tensor d_y, str activation) -> (Tensor, Tensor)",
    _activated_rows_back,
    _fake_activated_rows_back,
)


def spans(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """softmax(scale · q kᵀ) v [B, H, T, V], of queries [B, H, T, C] over keys [B, K, S, C] and values [B, K, S, V] in
    float32, whose channels lie together: query t sees the keys first[t] to last[t] - 1 (int32 [B or 1, T], contiguous).
    A query that sees nothing gives zeros. With it log Σ exp(scale · q k), [B, T, H]."""
    return _run_spans(q, k, v, first, last, scale)


def spans_back(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    y: Tensor,
    log_sums: Tensor,
    d_y: Tensor,
    first: Tensor,
    last: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, out of what `spans` was given and gave, and the gradient d_y [B, H, T, V]."""
    return _run_spans_back(q, k, v, y, log_sums, d_y, first, last, scale)


def norm_rows(x: Tensor, weight: Tensor | None, kind: int, eps: float) -> Tensor:
    """The RMS norm of many rows x [..., D], with a weight [D]; float32 and contiguous."""
    return _run_norm_rows(x, weight, kind, eps)


def norm_rows_back(x: Tensor, weight: Tensor | None, d_y: Tensor, kind: int, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x [..., D] and the weight [D], out of d_y [..., D]."""
    return _run_norm_rows_back(x, weight, d_y, kind, eps)


def activated_rows(x: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """act(x) · up, or act(x); of one shape and type, float32 or bfloat16, and contiguous."""
    return _run_activated_rows(x, up, activation)


def activated_rows_back(x: Tensor, up: Tensor | None, d_y: Tensor, activation: str) -> tuple[Tensor, Tensor | None]:
    """The gradients of x and of up."""
    d_x, d_up = _run_activated_rows_back(x, up, d_y, activation)
    return d_x, None if up is None else d_up
