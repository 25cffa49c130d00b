"""FlashAttention's idea (Dao et al. 2022; Milakov & Gimelshein 2018) in plain torch: the one to read.

Keys are visited in tiles. A running maximum m and a running sum l of exponentials rescale what was gathered so far
whenever a larger score turns up, so that no more than a tile of scores exists at a time:

    m' = max(m, s)      a = exp(m - m')      l' = a·l + Σ exp(s - m')      o' = a·o + exp(s - m')·v

Queries are taken in tiles too, each recomputed in the backward pass, so memory is O(n·tile) in both directions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible

TILE = 512


def limits(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None: it can do everything; it is slower than what it explains."""
    return None


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores, tile: int = TILE) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C]."""
    rows = []
    for start in range(0, q.shape[2], tile):
        span = slice(start, min(start + tile, q.shape[2]))
        row = (q[:, :, span], k, v, visible, scores, span, tile)
        recompute = torch.is_grad_enabled() and q.shape[2] > tile
        rows.append(checkpoint(_row, *row, use_reentrant=False) if recompute else _row(*row))
    return torch.cat(rows, 2)


def _row(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores, span: slice, tile: int) -> Tensor:
    B, H, T, _ = q.shape
    group = H // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    queries = visible.q[span]
    q = q.to(wide)
    lowest = torch.finfo(wide).min
    maximum = q.new_full((B, H, T, 1), lowest)
    total = q.new_zeros(B, H, T, 1)
    if scores.sinks is not None:
        maximum = maximum.maximum(scores.sinks.to(wide)[None, :, None, None])
        total = total + torch.exp(scores.sinks.to(wide)[None, :, None, None] - maximum)
    gathered = q.new_zeros(B, H, T, v.shape[-1])
    for start in range(0, k.shape[2], tile):
        keys = visible.k[start : start + tile]
        k_tile = k[:, :, start : start + tile].to(wide).repeat_interleave(group, 1)
        v_tile = v[:, :, start : start + tile].to(wide).repeat_interleave(group, 1)
        score = (q @ k_tile.transpose(-1, -2)).to(wide) * scores.scale
        if scores.soft_cap is not None:
            score = scores.soft_cap * torch.tanh(score / scores.soft_cap)
        if scores.bias is not None:
            score = score + scores.bias.dense(queries, keys)
        allowed = visible.mask.allows(queries, keys)[:, None]
        score = score.masked_fill(~allowed, lowest)
        larger = maximum.maximum(score.amax(-1, keepdim=True))
        rescale = torch.exp(maximum - larger)
        share = torch.exp(score - larger) * allowed
        total = total * rescale + share.sum(-1, keepdim=True)
        gathered = gathered * rescale + F.dropout(share, scores.dropout, training=scores.dropout > 0) @ v_tile
        maximum = larger
    # Nothing visible: zero by one, and not by something so small that its inverse is infinite in the backward pass.
    return (gathered / total.masked_fill(total == 0, 1)).to(v.dtype)
