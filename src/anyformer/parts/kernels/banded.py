"""Sliding windows at O(n·w) time and memory, forward and backward, in plain torch operations.

Queries are cut into blocks at least as long as the window's reach, so that a block needs its own keys and those of its
neighbours only, and every block is one more row of the batch:

    reach w = 3, block 4          keys of block 1: [ block 0 | block 1 ]
      queries  |....|....|....|                      ....    xxxx
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.parts.kernels import reference, sdpa
from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Tokens, Visible

SMALLEST = 64
#: Scores held at a time where the tiles themselves are materialised (soft caps, sinks), in elements.
LARGEST_TILES = 1 << 25


def limits(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None."""
    return None if visible.form == "band" else "it needs a window that is shorter than the keys, in index order"


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C]."""
    T, S = q.shape[2], k.shape[2]
    block = max(visible.left - 1, visible.right - 1, SMALLEST)
    behind, ahead = visible.left > 1, visible.right > 1
    blocks = -(-T // block)
    # Keys in the frame of the queries: those that query 0's block can reach come first; zeros fill what is not there.
    front, back = block * behind, block * ahead
    first = visible.offset - front
    last = visible.offset + blocks * block + back
    pad = (max(-first, 0), max(last - S, 0))

    def keys_of_blocks(x_BKSC: Tensor) -> Tensor:
        x = F.pad(x_BKSC[:, :, max(first, 0) : min(last, S)], (0, 0, *pad)).unflatten(2, (-1, block))
        parts = [x[:, :, shift : shift + blocks] for shift in range(1 + behind + ahead)]
        return torch.cat(parts, 3) if len(parts) > 1 else x

    keys, values = keys_of_blocks(k), keys_of_blocks(v)
    queries = F.pad(q, (0, 0, 0, blocks * block - T)).unflatten(2, (blocks, block))
    # Blocks whose keys all exist see the same pattern: one mask serves them all. Those at the edges get their own.
    groups = _groups(blocks, block, first, S, keys.shape[3])
    out = []
    for start, stop in groups:
        tile = _tile(visible, start, block, first, keys.shape[3], S)
        kernel = reference if sdpa.limits(q, k, tile, scores) else sdpa
        step = stop - start
        if kernel is reference:
            step = max(1, LARGEST_TILES // (q.shape[0] * q.shape[1] * block * keys.shape[3]))
        for at in range(start, stop, step):
            part = slice(at, min(at + step, stop))
            one_each = [_batch(x[:, :, part]) for x in (queries, keys, values)]
            out.append(_unbatch(kernel.attend(one_each[0], one_each[1], one_each[2], tile, scores), q))
    return torch.cat(out, 2).flatten(2, 3)[:, :, :T]


def _groups(blocks: int, block: int, first: int, S: int, width: int) -> list[tuple[int, int]]:
    """Runs of blocks that share a mask: single ones at the edges, all whole ones together."""

    def whole(index: int) -> bool:
        return first + index * block >= 0 and first + index * block + width <= S

    inside = [index for index in range(blocks) if whole(index)]
    if not inside:
        return [(index, index + 1) for index in range(blocks)]
    lead, tail = range(inside[0]), range(inside[-1] + 1, blocks)
    return [(i, i + 1) for i in lead] + [(inside[0], inside[-1] + 1)] + [(i, i + 1) for i in tail]


def _tile(visible: Visible, index: int, block: int, first: int, width: int, S: int) -> Visible:
    """The mask of one block of queries against its keys; keys that do not exist are hidden."""
    assert visible.q.start is not None and visible.k.start is not None
    device = visible.q.device
    origin = first + index * block
    q = Tokens(block, device=device, start=visible.q.start + index * block)
    k = Tokens(width, device=device, start=visible.k.start + origin)
    at = torch.arange(origin, origin + width, device=device)
    exists = (at >= 0) & (at < S)
    return Visible("dense", visible.mask, q, k, dense=visible.mask.allows(q, k)[:, None] & exists)


def _batch(x: Tensor) -> Tensor:
    """[B, H, blocks, n, C] -> [B·blocks, H, n, C]."""
    # A view of a few blocks, kept for the backward pass, would keep all of them.
    return x.transpose(1, 2).flatten(0, 1).contiguous()


def _unbatch(x: Tensor, like: Tensor) -> Tensor:
    """[B·blocks, H, n, C] -> [B, H, blocks, n, C]."""
    return x.unflatten(0, (like.shape[0], -1)).transpose(1, 2)
