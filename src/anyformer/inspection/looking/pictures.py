"""Small pictures as data URIs: a number from 0 to 1 is how much of one colour there is at a point."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode

import torch
from torch import Tensor

#: One colour that shows on white and on black, in so many steps from nothing of it to all.
COLOUR, STEPS = b"\x2f\x74\xff", 16


def picture(values: Tensor) -> str:
    """A PNG of [height, width] values from 0 to 1, as a data URI; by their square roots, so that small ones show."""
    steps = (values.clamp(0, 1).sqrt() * (STEPS - 1)).round().to(torch.uint8)
    height, width = steps.shape
    # Two points a byte, a zero byte (no filter) before each row.
    even = torch.nn.functional.pad(steps, (0, width % 2)).view(height, -1, 2)
    rows = torch.nn.functional.pad(even[..., 0] * 16 + even[..., 1], (1, 0))
    transparency = bytes(round(255 * step / (STEPS - 1)) for step in range(STEPS))
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 4, 3, 0, 0, 0)),
        (b"PLTE", COLOUR * STEPS),
        (b"tRNS", transparency),
        (b"IDAT", zlib.compress(bytes(rows.flatten().tolist()), 9)),
        (b"IEND", b""),
    )
    return "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))).decode()


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, data = chunk
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
