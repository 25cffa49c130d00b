"""Few queries over a cache on a CPU: the native kernel, limited by reading the keys and values."""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.parts.kernels import native
from anyformer.parts.kernels.int8_rows import Int8Rows
from anyformer.parts.kernels.native import tape
from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Bias, Visible

#: Queries of a row; of more, products of matrices make more.
QUERIES = 8


def limits(q: Tensor, k: Tensor | Int8Rows, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None."""
    kept = k.rows if isinstance(k, Int8Rows) else k
    if torch.is_grad_enabled() and (q.requires_grad or kept.requires_grad):
        return "it has no gradients"
    if q.device.type != "cpu" or native.library() is None:
        return "it is compiled for CPUs, where it is compiled"
    if q.dtype not in native.TYPES or kept.dtype not in native.KEPT:
        return f"it reads float32 and bfloat16, not {q.dtype}"
    if scores.dropout:
        return "it has no dropout"
    return None


def pays(q: Tensor) -> bool:
    """Whether it is worth asking: few queries, without gradients, outside of compilation."""
    return q.shape[2] <= QUERIES and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def attend(q: Tensor, k: Tensor | Int8Rows, v: Tensor | Int8Rows, visible: Visible, scores: Scores) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C]; values may be of another width."""
    sinks = None if scores.sinks is None else scores.sinks.to(q.dtype)
    q = _side_by_side(q)
    if isinstance(k, Tensor) and isinstance(v, Tensor):
        # Under autocast values may be of another type than keys.
        k, v = _side_by_side(k), _side_by_side(v.to(k.dtype))
    out = native.attention(q, k, v, added(visible, scores.bias), sinks, scores.scale, scores.soft_cap)
    tape.say((visible, scores.bias))
    return out


def _side_by_side(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def added(visible: Visible, bias: Bias | None) -> Tensor | None:
    """What to add to the scores, float32 [B or 1, H or 1, T, S]; None where that is nothing."""
    return None if bias is None and visible.form == "everything" else visible.added(bias, torch.float32)
