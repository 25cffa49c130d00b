"""Rows of tokens, masks and scores of every kind, drawn at random; and what they mean, in plain Python."""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from anyformer import spec
from anyformer.parts import masks
from anyformer.parts.kernels import Scores
from anyformer.parts.masks import Mask, Tokens
from anyformer.parts.positions import RelativePositions, alibi_bias

#: The ways in which queries and keys may stand to each other.
LAYOUTS = ("range", "range in range", "packed", "packed across", "ids", "padded", "permuted", "bounded")


@dataclass(frozen=True)
class Token:
    """One token, as plain numbers."""

    position: int
    document: int | None
    valid: bool
    prefix: int | None


@dataclass(frozen=True)
class Pair:
    """Queries and keys of `rows` rows."""

    rows: int
    q: Tokens
    k: Tokens


def draw_pair(draw: random.Random, layout: str, most: int = 9) -> Pair:
    """Queries and keys in a layout, [rows, T] and [rows, S], T up to `most`."""
    rows, T = draw.choice([1, 1, 2, 3]), draw.randint(1, most)
    prefix = torch.tensor([[draw.randint(0, T)] for _ in range(rows)]) if draw.random() < 0.4 else None
    if layout == "range":
        span = Tokens(T, start=draw.randint(0, 5), prefix=prefix)
        return Pair(rows, span, span)
    if layout == "range in range":
        S, start = draw.randint(1, 2 * most), draw.randint(0, 5)
        q = Tokens(T, start=start + draw.randint(-start, S), prefix=prefix)
        return Pair(rows, q, Tokens(S, start=start, prefix=prefix))
    if layout == "packed":
        packed = Tokens.packed(tuple(_cut(draw, T) for _ in range(rows)))
        return Pair(rows, packed, packed)
    if layout == "packed across":
        S = draw.choice([T, draw.randint(1, most)])
        q, k = (Tokens.packed(tuple(_cut(draw, length) for _ in range(rows))) for length in (T, S))
        return Pair(rows, q, k)
    if layout == "ids":
        ids = torch.tensor([sorted(draw.choices(range(3), k=T)) for _ in range(rows)])
        position = torch.tensor([[draw.randint(0, T) for _ in range(T)] for _ in range(rows)])
        span = Tokens(T, position=position, document=ids, valid=_draw_valid(draw, rows, T), prefix=prefix)
        return Pair(rows, span, span)
    if layout == "padded":
        valid = _draw_valid(draw, rows, T)
        position = (valid.long().cumsum(1) - 1).clamp(min=0)
        span = Tokens(T, position=position, high=T - 1, valid=valid, prefix=prefix)
        return Pair(rows, span, span)
    if layout == "permuted":
        S = draw.randint(1, 2 * most)
        position = torch.tensor([draw.sample(range(S + 3), S) for _ in range(rows)])
        k = Tokens(S, position=position, valid=_draw_valid(draw, rows, S), prefix=prefix)
        return Pair(rows, Tokens(T, start=draw.randint(0, S + 3), prefix=prefix), k)
    assert layout == "bounded"
    # Bounds that the host knows of positions that only the device knows.
    low = draw.randint(0, 4)
    q, k = (
        Tokens(n, position=torch.randint(a, b + 1, (rows, n)), low=a, high=b, prefix=prefix)
        for n, a, b in ((T, low, low + draw.randint(0, 6)), (draw.randint(1, most), 0, draw.randint(0, 8)))
    )
    return Pair(rows, q, k)


def _cut(draw: random.Random, total: int) -> tuple[int, ...]:
    """Document lengths that sum to `total`."""
    edges = sorted({0, total, *(draw.randint(0, total) for _ in range(draw.randint(0, 4)))})
    return tuple(b - a for a, b in pairwise(edges))


def _draw_valid(draw: random.Random, rows: int, T: int) -> Tensor:
    """Padding on the left, on the right, anywhere, or everywhere."""
    row = {
        "left": lambda: [index >= gap for index in range(T)],
        "right": lambda: [index < T - gap for index in range(T)],
        "holes": lambda: [draw.random() < 0.6 for _ in range(T)],
        "nothing": lambda: [False] * T,
    }
    found = []
    for _ in range(rows):
        gap = draw.randint(0, T)
        found.append(row[draw.choice(["left", "left", "right", "right", "holes", "holes", "nothing"])]())
    return torch.tensor(found)


def _draw_leaf(draw: random.Random) -> Mask:
    side = [None, 1, 1, 2, 3, 5]
    return draw.choice(
        [
            masks.Full(),
            masks.Causal(),
            masks.Causal(),
            masks.Window(draw.choice(side), draw.choice(side)),
            masks.Window(draw.choice(side[1:]), draw.choice(side[1:])),
            masks.SameDocument(),
            masks.Valid(),
            masks.Prefix(),
            masks.Sink(draw.randint(0, 3)),
        ]
    )


def draw_mask(draw: random.Random, depth: int = 3, shallow: bool = False) -> Mask:
    """All leaves, nested in &, | and ~; or, with `shallow`, conjunctions such as models use."""
    if shallow:
        mask = _draw_leaf(draw)
        for _ in range(draw.randint(0, 3)):
            mask = mask & _draw_leaf(draw)
        return mask
    if depth == 0 or draw.random() < 0.25:
        return _draw_leaf(draw)
    a = draw_mask(draw, depth - 1)
    match draw.choice(["and", "and", "or", "not"]):
        case "and":
            return a & draw_mask(draw, depth - 1)
        case "or":
            return a | draw_mask(draw, depth - 1)
        case _:
            return ~a


def draw_scores(draw: random.Random, heads: int, head_dim: int, dtype: torch.dtype, wide: bool = True) -> Scores:
    """Scale, soft cap, ALiBi or buckets, sinks, those with numbers of their own wanting gradients; without `wide`, only
    what torch's own kernel can take."""
    bias = draw.choice([None, "alibi", "buckets"])
    table = None
    if bias == "buckets":
        buckets = spec.RelativeBuckets(buckets=8, max_distance=12, bidirectional=draw.random() < 0.5)
        table = RelativePositions(buckets, heads).to(dtype)
    return Scores(
        scale=draw.choice([head_dim**-0.5, 0.2, 1.0]),
        soft_cap=draw.choice([None, 1.5]) if wide else None,
        bias=alibi_bias(heads, 8.0) if bias == "alibi" else table,
        sinks=torch.randn(heads, dtype=dtype, requires_grad=True) if wide and draw.random() < 0.3 else None,
    )


def in_plain_python(mask: Mask, pair: Pair) -> list[list[list[bool]]]:
    """Who sees whom, [row][query][key], by loops over single tokens."""
    q, k = (listed(tokens, pair.rows) for tokens in (pair.q, pair.k))
    return [[[sees(mask, a, b) for b in k[row]] for a in q[row]] for row in range(pair.rows)]


def listed(tokens: Tokens, rows: int) -> list[list[Token]]:
    def rows_of(tensor: Tensor | None) -> list[list[int | None]]:
        if tensor is None:
            return [[None] * tokens.length] * rows
        wide = tensor.expand(rows, tensor.shape[1])
        return wide.tolist() if tensor.shape[1] == tokens.length else [row * tokens.length for row in wide.tolist()]

    valid = [[flag is None or bool(flag) for flag in row] for row in rows_of(tokens.valid)]
    prefix = [[None] * tokens.length] * rows
    if tokens.prefix is not None:
        prefix = [row * tokens.length for row in tokens.prefix.expand(rows, 1).tolist()]
    columns = (rows_of(tokens.position), rows_of(tokens.document), valid, prefix)
    return [[Token(*values) for values in zip(*row)] for row in zip(*columns)]


def sees(mask: Mask, q: Token, k: Token) -> bool:
    """What each leaf and each operation says, one pair at a time."""
    match mask:
        case masks.Full():
            return True
        case masks.Causal():
            return k.position <= q.position
        case masks.Window(left, right):
            # n keys on a side, the query itself the first of them.
            behind, ahead = q.position - k.position + 1, k.position - q.position + 1
            return (left is None or behind <= left) and (right is None or ahead <= right)
        case masks.SameDocument():
            return q.document is None or k.document is None or q.document == k.document
        case masks.Valid():
            return k.valid
        case masks.Prefix():
            return k.prefix is not None and k.position < k.prefix
        case masks.Sink(n):
            return k.position < n
        case masks.And(a, b):
            return sees(a, q, k) and sees(b, q, k)
        case masks.Or(a, b):
            return sees(a, q, k) or sees(b, q, k)
        case masks.Not(a):
            return not sees(a, q, k)
    raise AssertionError(mask)
