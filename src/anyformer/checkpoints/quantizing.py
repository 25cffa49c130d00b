"""From numbers to blocks: the scales that lose least, found by least squares.

Rounding x to s · q (+ m) loses Σ (x - s · q - m)². For given q the best s and m solve a linear system; so several
spacings are tried for q, each with the s and m that suit it, and the best is kept: the search that ggml's own
quantisers make (ggml-quants.c, make_qx_quants and make_qkx2_quants), but for weights, which did not pay here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anyformer.errors import CheckpointError
from anyformer.parts.blocks import FORMATS, Blocks, Format

#: Numbers in work at a time; so many, with what is made of them, stay in a core's own cache.
CHUNK = 1 << 16
#: The largest number that is quantised, float16's: blocks keep their scales in that.
LARGEST = 65504.0
#: How much wider or narrower than the numbers' range the spacings that are tried are, in steps of q.
NUDGES = (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)
#: What takes the place of a format where rows are no whole blocks of it.
_SMALLER_BLOCKS = {"Q4_K": "Q4_0", "Q6_K": "Q8_0"}
#: What the tables of tokens (embeddings, and heads that give logits) are in, beside matrices in four bits.
_TABLES = {"Q4_0": "Q6_K", "Q4_1": "Q6_K", "Q4_K": "Q6_K"}


def fitting(wanted: Format, width: int, *, table: bool = False) -> Format | None:
    """The format of a matrix with rows of `width` numbers where most are to be in the `wanted` one: that, or one of
    smaller blocks, or None where no blocks fit its rows. A `table` of tokens is never kept in as few as four bits."""
    name = _TABLES.get(wanted.name, wanted.name) if table else wanted.name
    format = FORMATS[name]
    if not format.fits(width) and name in _SMALLER_BLOCKS:
        format = FORMATS[_SMALLER_BLOCKS[name]]
    return format if format.fits(width) else None


@torch.no_grad()
def quantize(tensor: Tensor, format: Format, *, search: bool = True) -> Blocks:
    """The blocks of a matrix [..., out, in], whose rows must be whole blocks.

    Without `search`, Q8_0, Q4_0 and Q4_1 are rounded as ggml's reference rounds them, to the bit. Raises
    `CheckpointError` for rows that are no whole blocks, and for numbers that are none, or larger than `LARGEST`.
    """
    if not format.fits(tensor.shape[-1]):
        raise CheckpointError(f"rows of {tensor.shape[-1]} are no whole blocks of {format.name}; take another format")
    make = (_SEARCHED if search else _PLAIN).get(format.name) or _SEARCHED.get(format.name) or _PLAIN[format.name]
    rows = tensor.reshape(-1, format.elements)
    data = torch.empty(len(rows), format.size, dtype=torch.uint8)
    step = CHUNK // format.elements
    for part, into in zip(rows.split(step), data.split(step)):
        numbers = part.detach().to("cpu", torch.float32)
        if not bool((numbers.abs() <= LARGEST).all()):
            raise CheckpointError(
                f"a matrix to be quantised holds numbers that are not finite, or beyond {LARGEST:,.0f}; the model is "
                f"damaged"
            )
        into.copy_(make(numbers))
    return Blocks(data.view(*tensor.shape[:-1], -1), format)


def _q8_0(x: Tensor) -> Tensor:
    scale = x.abs().amax(1, keepdim=True) / 127
    numbers = _away_from_zero(x * _inverse(scale)).to(torch.int8)
    return torch.cat((_bytes(scale), numbers.view(torch.uint8)), 1)


def _q4_0(x: Tensor) -> Tensor:
    scale = _largest(x) / -8
    numbers = (x * _inverse(scale) + 8.5).to(torch.uint8).clamp_(max=15)
    return torch.cat((_bytes(scale), _pairs(numbers)), 1)


def _q4_1(x: Tensor) -> Tensor:
    least = x.amin(1, keepdim=True)
    scale = (x.amax(1, keepdim=True) - least) / 15
    numbers = ((x - least) * _inverse(scale) + 0.5).to(torch.uint8).clamp_(max=15)
    return torch.cat((_bytes(scale), _bytes(least), _pairs(numbers)), 1)


def _q4_0_searched(x: Tensor) -> Tensor:
    scale = _rounded(symmetric(x, -8, 7))
    numbers = (x * _inverse(scale)).round_().clamp_(-8, 7) + 8
    return torch.cat((_bytes(scale), _pairs(numbers.to(torch.uint8))), 1)


def _q4_1_searched(x: Tensor) -> Tensor:
    scale, least = map(_rounded, affine(x, 15))
    numbers = ((x - least) * _inverse(scale)).round_().clamp_(0, 15)
    return torch.cat((_bytes(scale), _bytes(least), _pairs(numbers.to(torch.uint8))), 1)


def _q4_k(x: Tensor) -> Tensor:
    parts = x.view(-1, 32)
    scales, least = affine(parts, 15, ceiling=True)
    scales, offsets = scales.view(-1, 8), -least.view(-1, 8)
    scale, offset = (_rounded(each.amax(1, keepdim=True) / 63) for each in (scales, offsets))
    scales = (scales * _inverse(scale)).round_().clamp_(0, 63)
    offsets = (offsets * _inverse(offset)).round_().clamp_(0, 63)
    numbers = (parts + (offset * offsets).view(-1, 1)) * _inverse((scale * scales).view(-1, 1))
    pairs = _pairs(numbers.round_().clamp_(0, 15).to(torch.uint8).view(-1, 64)).view(-1, 128)
    return torch.cat((_bytes(scale), _bytes(offset), pack_scales(scales, offsets), pairs), 1)


def _q6_k(x: Tensor) -> Tensor:
    parts = x.view(-1, 16)
    scales = symmetric(parts, -32, 31).view(-1, 16)
    scale = _rounded(_largest(scales) / -128)
    scales = (scales * _inverse(scale)).round_().clamp_(-128, 127)
    numbers = (parts * _inverse((scale * scales).view(-1, 1))).round_().clamp_(-32, 31) + 32
    numbers = numbers.to(torch.uint8).view(-1, 2, 4, 32)
    low = numbers[:, :, :2] & 15 | numbers[:, :, 2:] << 4
    high = numbers >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return torch.cat((low.flatten(1), high.flatten(1), scales.to(torch.int8).view(torch.uint8), _bytes(scale)), 1)


def symmetric(x: Tensor, low: int, high: int) -> Tensor:
    """The scale s [N, 1] for which s · q, q whole and from `low` to `high`, loses least of each row of x [N, n]."""
    largest = _largest(x)
    best, gain = largest / low, torch.full_like(largest, -1.0)
    for spacing in (*(_inverse(largest) * (low - nudge) for nudge in NUDGES), None):
        q = (x * (_inverse(best) if spacing is None else spacing)).round_().clamp_(low, high)
        products, squares = _dot(x, q), _dot(q, q)
        scale = products * _inverse(squares)
        better = products * scale > gain
        best, gain = torch.where(better, scale, best), torch.where(better, products * scale, gain)
    return best


def affine(x: Tensor, high: int, *, ceiling: bool = False) -> tuple[Tensor, Tensor]:
    """The scale s and the least number m [N, 1] for which s · q + m, q whole and from 0 to `high`, loses least of each
    row of x [N, n]. With a `ceiling`, m is 0 at most."""
    least, most = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    least = least.clamp(max=0) if ceiling else least
    above, width = x - least, _inverse(most - least)
    best, offset, gain = (most - least) / high, least, torch.full_like(least, -torch.inf)
    count, total = x.shape[1], x.sum(1, keepdim=True)
    for spacing in (*(width * (high + nudge) for nudge in NUDGES), None):
        q = above * spacing if spacing is not None else (x - offset) * _inverse(best)
        q = q.round_().clamp_(0, high)
        q1, q2, qx = q.sum(1, keepdim=True), _dot(q, q), _dot(q, x)
        inverse = _inverse(count * q2 - q1 * q1)
        scale, start = (count * qx - total * q1) * inverse, (q2 * total - q1 * qx) * inverse
        if ceiling:
            scale, start = torch.where(start > 0, qx * _inverse(q2), scale), start.clamp(max=0)
        found = scale * qx + start * total  # Σ x² less what is lost
        better = (found > gain) & (inverse > 0)
        best, offset = torch.where(better, scale, best), torch.where(better, start, offset)
        gain = torch.where(better, found, gain)
    return best, offset


def pack_scales(scales: Tensor, offsets: Tensor) -> Tensor:
    """What `unpack_scales` reads: 12 bytes [N, 12] of scales and offsets [N, 8] below 64."""
    low, high = scales.to(torch.uint8), offsets.to(torch.uint8)
    first = low[:, :4] | low[:, 4:] >> 4 << 6
    second = high[:, :4] | high[:, 4:] >> 4 << 6
    return torch.cat((first, second, low[:, 4:] & 15 | high[:, 4:] << 4), 1)


def _largest(x: Tensor) -> Tensor:
    """Of each row the number farthest from nought, [N, 1], with its sign."""
    return x.gather(1, x.abs().argmax(1, keepdim=True))


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """The product of each row with its like, [N, 1]."""
    return (x * y).sum(1, keepdim=True)


def _inverse(x: Tensor) -> Tensor:
    """1/x, and nought of nought."""
    return torch.where(x == 0, 0, 1 / x)


def _rounded(scale: Tensor) -> Tensor:
    """What a file keeps of a scale; the numbers are then fitted to that."""
    return scale.half().float()


def _away_from_zero(x: Tensor) -> Tensor:
    """To the nearest whole number, halves away from zero, as C rounds."""
    whole = x.abs().floor()
    return x.sign() * (whole + (2 * (x.abs() - whole)).floor())


def _pairs(numbers: Tensor) -> Tensor:
    """Two numbers a byte: the first half of each row in the lower bits, the second in the upper."""
    first, second = numbers.chunk(2, 1)
    return first | second << 4


def _bytes(scale: Tensor) -> Tensor:
    return scale.half().view(torch.uint8)


_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}
_SEARCHED: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _q4_0_searched,
    "Q4_1": _q4_1_searched,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
