"""MXFP4, in which gpt-oss publishes its experts: 32 numbers of four bits share a power of two (OCP Microscaling Formats
1.0, section 5.3.3). Such tensors are read as the matrices that they stand for.

    X_blocks  uint8 [..., out, in/32, 16]   two numbers a byte, the first in its lower four bits
    X_scales  uint8 [..., out, in/32]       exponents, with 127 added        ->        X  bfloat16 [..., in, out]
"""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.checkpoints.packed import PackedSource
from anyformer.checkpoints.weights import Saved, Source
from anyformer.errors import CheckpointError

#: What four bits mean: a sign, two bits of exponent, one of mantissa.
NUMBERS = [sign * number for sign in (1.0, -1.0) for number in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)]
_BYTES = [(NUMBERS[byte & 15], NUMBERS[byte >> 4]) for byte in range(256)]
#: The two numbers of each byte, side by side in 32 bits, so that they are looked up as one.
PAIRS = torch.tensor(_BYTES, dtype=torch.bfloat16).view(torch.int32).flatten()


def unpacked(source: Source) -> Source:
    """A source whose MXFP4 tensors, if it has any, are read as matrices. Raises `CheckpointError` naming blocks that do
    not fit their scales."""
    names = [name.removesuffix("_blocks") for name in source.saved if name.endswith("_blocks")]
    packed = {name: Saved(_shape(source, name), "BF16") for name in names if f"{name}_scales" in source.saved}
    parts = {f"{name}{part}" for name in packed for part in ("_blocks", "_scales")}
    return Mxfp4Source(source, packed, parts) if packed else source


def _shape(source: Source, name: str) -> tuple[int, ...]:
    blocks, scales = (source.saved[f"{name}{part}"] for part in ("_blocks", "_scales"))
    if blocks.shape != (*scales.shape, 16) or len(scales.shape) < 3 or {blocks.dtype, scales.dtype} != {"U8"}:
        raise CheckpointError(
            f"{source.where}: {name}_blocks is {blocks.dtype} {blocks.shape} and {name}_scales {scales.dtype} "
            f"{scales.shape}, which is no MXFP4; get the files again"
        )
    *before, rows, groups = scales.shape
    return (*before, 32 * groups, rows)


class Mxfp4Source(PackedSource):
    """Another source's tensors, the packed ones put together from their blocks and scales."""

    def unpack(self, name: str) -> Tensor:
        blocks, scales = self.source.read(f"{name}_blocks"), self.source.read(f"{name}_scales")
        matrices = torch.empty(*scales.shape[:-1], 32 * scales.shape[-1], dtype=torch.bfloat16)
        for matrix, block, scale in zip(matrices, blocks, scales):  # one by one, as indices take room
            matrix.copy_(unpack(block, scale))
        return matrices.transpose(-1, -2)


def unpack(blocks: Tensor, scales: Tensor) -> Tensor:
    """The bfloat16 numbers [..., 32·groups] of blocks [..., groups, 16] with scales [..., groups], which are exact."""
    numbers = PAIRS.index_select(0, blocks.flatten().int()).view(torch.bfloat16).view(*scales.shape, 32)
    powers = torch.ldexp(torch.ones(scales.shape), scales.int() - 127).to(torch.bfloat16)
    return numbers.mul_(powers[..., None]).flatten(-2)
