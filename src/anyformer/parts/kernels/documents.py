"""Packed documents: those of about one length side by side in one padded batch, so that many short ones cost few calls.

    row of the batch   a a a b b b b c c a d d d        a batch of each length, rounded up to `ROUND`

                                                            a a a .      c c
        tokens  ── spread ──> padded batches, attended ──   b b b b
                                                            d d d .  ── collect ──> tokens

Padding is hidden from every query, and what is computed for it is never read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from anyformer.parts.masks import Causal, Mask, Tokens, Valid, Visible, conjuncts, lower

#: Documents up to this long share a batch with those of other lengths, rounded up to a multiple of `ROUND`; longer ones
#: only with those of their own.
LONGEST_ROUNDED = 128
ROUND = 16


@dataclass(frozen=True)
class Layout:
    """Where tokens stand in the padded batches.

    groups   each batch: how many documents, and what they see of themselves or of their partner
    queries  [tokens] int64, the place of each query in all batches laid end to end; keys likewise. One place behind the
             last is nowhere. None: the batches are the tokens as they stand
    """

    groups: Sequence[tuple[int, Visible]]
    queries: Tensor | None
    keys: Tensor | None


def layout(visible: Visible) -> Layout:
    """The batches of a mask of form "documents"; made once for all layers."""
    if visible.made is None:
        visible.made = _layout(visible)
    return visible.made


def _layout(visible: Visible) -> Layout:
    alike: dict[Any, list[int]] = defaultdict(list)
    parts = visible.parts
    for index, (_, part) in enumerate(parts):
        if part.q.length and part.k.length:
            alike[_rounded(part.q.length), _rounded(part.k.length), part.mask, part.k.prefix is None].append(index)
    groups = [(len(members), _together([parts[index][1] for index in members])) for members in alike.values()]
    places = []
    for side in (lambda part: part.q, lambda part: part.k):
        lengths = [side(part).length for _, part in parts]
        sizes = [count * side(group).length for count, group in groups]
        starts = dict.fromkeys(range(len(parts)), -1)
        for first, members, (_, group) in zip(accumulate(sizes, initial=0), alike.values(), groups):
            starts.update((index, first + at * side(group).length) for at, index in enumerate(members))
        nowhere = sum(sizes)
        place = [
            spot
            for index, length in enumerate(lengths)
            for spot in (range(starts[index], starts[index] + length) if starts[index] >= 0 else [nowhere] * length)
        ]
        as_they_stand = place == list(range(nowhere))
        places.append(None if as_they_stand else torch.tensor(place, device=visible.q.device))
    return Layout(groups, *places)


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND if length <= LONGEST_ROUNDED else length


def _together(parts: Sequence[Visible]) -> Visible:
    """What documents of one mask see, side by side, each padded to the longest."""
    first = parts[0]
    if all(part is first for part in parts):
        return first
    device = first.q.device
    prefix = (
        None if first.k.prefix is None else torch.cat([part.k.prefix for part in parts if part.k.prefix is not None])
    )
    lengths = [part.k.length for part in parts]
    # What comes after every query of its document is hidden by a causal mask already.
    hides_padding = len(set(lengths)) == 1 or Causal() in conjuncts(first.mask)
    valid = None if hides_padding else _valid(lengths, device)
    mask: Mask = first.mask if valid is None else first.mask & Valid()
    q = Tokens(max(part.q.length for part in parts), device=device, start=0, prefix=prefix)
    k = Tokens(max(lengths), device=device, start=0, prefix=prefix, valid=valid)
    return lower(mask, q, k)


def _valid(lengths: Sequence[int], device: Any) -> Tensor:
    """bool [documents, longest]."""
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


def attend(
    q: Tensor, k: Tensor, v: Tensor, visible: Visible, kernel: Callable[[Tensor, Tensor, Tensor, Visible], Tensor]
) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C], by what `kernel` makes of each batch.
    Documents without keys give zeros."""
    plan = layout(visible)
    q_sizes = [count * group.q.length for count, group in plan.groups]
    k_sizes = [count * group.k.length for count, group in plan.groups]
    queries = _spread(q, plan.queries, q_sizes)
    keys, values = _spread(k, plan.keys, k_sizes), _spread(v, plan.keys, k_sizes)
    out = []
    for (count, group), a, b, c in zip(plan.groups, queries, keys, values):
        a, b, c = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (a, b, c))
        out.append(kernel(a, b, c, group).transpose(1, 2).flatten(0, 1))
    if plan.queries is not None:
        nowhere = v.new_zeros(1, q.shape[1], v.shape[3])
        gathered = _Collect.apply(torch.cat([*out, nowhere]), plan.queries)
    else:
        gathered = torch.cat(out) if len(out) > 1 else out[0]
    return gathered.unflatten(0, (q.shape[0], -1)).transpose(1, 2)


def _spread(x: Tensor, places: Tensor | None, sizes: Sequence[int]) -> Sequence[Tensor]:
    """[B, H, T, C] -> the tokens of each batch, [documents · longest, H, C]."""
    tokens = x.transpose(1, 2).flatten(0, 1)
    if places is None:
        return tokens.split(list(sizes))
    return _Spread.apply(tokens, places, sum(sizes) + 1)[:-1].split(list(sizes))


class _Spread(torch.autograd.Function):
    """Rows [N, ...] put at their places among `count`, the others zero. No two share a place but the last, which nobody
    reads: so the gradient is a selection."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(places)
        return rows.new_zeros(count, *rows.shape[1:]).index_copy_(0, places, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, come_back: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return come_back.index_select(0, ctx.saved_tensors[0]), None, None


class _Collect(torch.autograd.Function):
    """Rows [N, ...] taken from their places. What is at the last one, which any number may read, has no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, come_back: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        zeros = come_back.new_zeros(ctx.count, *come_back.shape[1:])
        return zeros.index_copy_(0, ctx.saved_tensors[0], come_back), None
