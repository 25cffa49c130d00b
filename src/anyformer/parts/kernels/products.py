"""Attention as batched matrix products with a backward pass of its own: for training on CPUs.

torch's tiled kernel has no dropout and no gradient of a bias there, and multiplies bfloat16 slowly. Here all heads of
all rows are multiplied at once, a block of queries at a time, so that causal blocks leave out most of what is hidden:

    queries 0..127    x              keys 0..127
    queries 128..255  x x            keys 0..255
    queries 256..383  x x x          keys 0..383

The weights are kept for the backward pass; what they are multiplied by and what is gathered from them is not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible

#: Queries at a time where the mask is causal.
BLOCK = 128
#: Weights that may be kept for a backward pass, in elements.
LARGEST_KEPT = 1 << 24


def limits(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None."""
    if scores.soft_cap is not None:
        return "it has no soft cap"
    if scores.sinks is not None:
        return "it has no sinks"
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] > LARGEST_KEPT:
        return "it keeps all weights for the backward pass, and these are too many"
    return None


def pays(q: Tensor, k: Tensor, scores: Scores) -> bool:
    """Whether it is worth asking: on a CPU, with gradients, where torch's tiled kernel has no backward pass of its own
    (dropout, a bias that learns) or is slow (bfloat16; `benchmarks/RESULTS.md`)."""
    if q.device.type != "cpu" or not (torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)):
        return False
    return scores.dropout > 0 or isinstance(scores.bias, nn.Module) or _dtype(q) == torch.bfloat16


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C]."""
    added = None
    if scores.bias is not None:
        added = visible.added(scores.bias, torch.promote_types(q.dtype, torch.float32))
    hidden = None if visible.form in ("everything", "causal") else ~visible.dense
    q, k, v = (x.to(_dtype(q)) for x in (q, k, v))
    # The backward pass runs outside of autocast, and shall find what the forward pass had.
    with torch.autocast(q.device.type, enabled=False):
        return _Products.apply(q, k, v, added, hidden, visible.form == "causal", scores.scale, scores.dropout)


def _dtype(q: Tensor) -> torch.dtype:
    """What is multiplied: under autocast, what it says."""
    narrow = torch.is_autocast_enabled(q.device.type) and q.dtype != torch.float64
    return torch.get_autocast_dtype(q.device.type) if narrow else q.dtype


def _blocks(T: int, S: int, causal: bool) -> list[tuple[slice, slice]]:
    """Queries, and the keys that the last of them sees."""
    if not causal:
        return [(slice(0, T), slice(0, S))]
    stops = [*range(BLOCK, T, BLOCK), T]
    return [(slice(start, stop), slice(0, stop)) for start, stop in zip([0, *stops], stops)]


class _Products(torch.autograd.Function):
    """softmax(scale · QKᵀ + added) V, with dropout of the weights; G queries heads to a key head:

    S = scale · QKᵀ + added     P = softmax(S)     A = dropout(P)     O = A V
    dV = Aᵀ dO                  dA = dO Vᵀ         dS = P ∘ (dP - rowsum(P ∘ dP))
    dQ = scale · dS K           dK = scale · dSᵀ Q
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        added: Tensor | None,
        hidden: Tensor | None,
        causal: bool,
        scale: float,
        dropout: float,
    ) -> Tensor:
        (B, H, T, C), (K, S) = q.shape, k.shape[1:3]
        G, wide = H // K, torch.promote_types(q.dtype, torch.float32)
        queries = torch.mul(q.unflatten(1, (K, G)), scale, out=q.new_empty(B, K, G, T, C))
        keys, values = k.reshape(B * K, S, C), v.reshape(B * K, S, -1)
        out = q.new_empty(B, T, K, G, v.shape[3])
        kept: list[Tensor | None] = []
        for rows, seen in _blocks(T, S, causal):
            scores = torch.bmm(queries[:, :, :, rows].reshape(B * K, -1, C), keys[:, seen].transpose(1, 2)).to(wide)
            scores = scores.view(B, K, G, -1, scores.shape[2])
            if added is not None:
                scores += _grouped(added, K)[..., rows, seen]
            elif causal:
                scores[..., rows].masked_fill_(_later(rows, q.device), -torch.inf)
            elif hidden is not None:
                scores.masked_fill_(_grouped(hidden, K), -torch.inf)
            weights = scores.softmax(-1)
            if hidden is not None:
                weights.masked_fill_(_grouped(hidden, K), 0)  # a row that sees nothing is NaN until here
            weights = weights.to(q.dtype)
            dropped = torch.empty_like(weights, dtype=torch.bool).bernoulli_(dropout) if dropout else None
            used = _dropped(weights, dropped, dropout).flatten(0, 1).flatten(1, 2)
            out[:, rows] = torch.bmm(used, values[:, seen]).view(B, K, G, -1, v.shape[3]).permute(0, 3, 1, 2, 4)
            kept += [weights, dropped]
        ctx.save_for_backward(queries, keys, values, *kept)
        ctx.shapes, ctx.causal, ctx.scale, ctx.dropout = (q.shape, k.shape, v.shape), causal, scale, dropout
        ctx.added_shape = added.shape if ctx.needs_input_grad[3] and added is not None else None
        return out.flatten(2, 3).transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        queries, keys, values, *kept = ctx.saved_tensors
        (B, H, T, C), (_, K, S, _), _ = ctx.shapes
        G = H // K
        d_q = queries.new_empty(B, T, K, G, C)
        d_k, d_v = torch.zeros_like(keys), torch.zeros_like(values)
        d_added = None
        if ctx.added_shape is not None:
            d_added = queries.new_zeros(ctx.added_shape, dtype=torch.promote_types(queries.dtype, torch.float32))
        for index, (rows, seen) in enumerate(_blocks(T, S, ctx.causal)):
            weights, dropped = kept[2 * index], kept[2 * index + 1]
            d = d_out[:, :, rows].reshape(B * K, -1, values.shape[2])
            used = _dropped(weights, dropped, ctx.dropout).flatten(0, 1).flatten(1, 2)
            d_v[:, seen] += torch.bmm(used.transpose(1, 2), d)
            d_weights = _dropped(torch.bmm(d, values[:, seen].transpose(1, 2)).view_as(weights), dropped, ctx.dropout)
            d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if d_added is not None:
                part = _grouped(d_added, K)[..., rows, seen]
                part += d_scores.sum_to_size(part.shape)
            d_scores = d_scores.flatten(0, 1).flatten(1, 2)
            d_rows = torch.bmm(d_scores, keys[:, seen]).view(B, K, G, -1, C)
            torch.mul(d_rows.permute(0, 3, 1, 2, 4), ctx.scale, out=d_q[:, rows])
            d_k[:, seen] += torch.bmm(d_scores.transpose(1, 2), queries[:, :, :, rows].reshape(B * K, -1, C))
        gradients = d_q.flatten(2, 3).transpose(1, 2), d_k.view(ctx.shapes[1]), d_v.view(ctx.shapes[2])
        return *gradients, d_added, None, None, None, None


def _grouped(x: Tensor, K: int) -> Tensor:
    """[B or 1, H or 1, T, S] -> [B or 1, K or 1, G or 1, T, S]."""
    return x.unflatten(1, (K, -1)) if x.shape[1] > 1 else x.unsqueeze(1)


def _later(rows: slice, device: torch.device) -> Tensor:
    """bool [n, n]: keys that come after the query."""
    n = rows.stop - rows.start
    return torch.ones(n, n, dtype=torch.bool, device=device).triu(1)


def _dropped(weights: Tensor, dropped: Tensor | None, share: float) -> Tensor:
    """The weights that are left, scaled by what is gone on average."""
    return weights if dropped is None else weights.masked_fill(dropped, 0).mul_(1 / (1 - share))
