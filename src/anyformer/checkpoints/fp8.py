"""FP8 with a scale for every block of 128 by 128 numbers, in which DeepSeek-V3 is published (DeepSeek-AI 2024,
https://arxiv.org/abs/2412.19437, section 3.3). Such tensors are read as the matrices that they stand for.

    X            float8 (e4m3)  [out, in]
    X_scale_inv  float          [out/128, in/128], rounded up     ->     X  bfloat16 [out, in], times its block's scale
"""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.checkpoints.packed import PackedSource
from anyformer.checkpoints.weights import DTYPES, Saved, Source
from anyformer.errors import CheckpointError

BLOCK = 128
SCALE = "_scale_inv"


def unpacked(source: Source) -> Source:
    """A source whose FP8 tensors, if it has any with scales, are read as matrices. Raises `CheckpointError` naming
    scales that do not fit."""
    scaled = [name for name, saved in source.saved.items() if saved.dtype == "F8_E4M3" and name + SCALE in source.saved]
    packed = {name: Saved(_shape(source, name), "BF16") for name in scaled}
    return Fp8Source(source, packed, {name + SCALE for name in scaled}) if packed else source


def _shape(source: Source, name: str) -> tuple[int, ...]:
    shape, scale = source.saved[name].shape, source.saved[name + SCALE]
    if scale.dtype not in DTYPES or len(shape) != 2 or scale.shape != tuple(-(-size // BLOCK) for size in shape):
        raise CheckpointError(
            f"{source.where}: {name}{SCALE} is {scale.dtype} {scale.shape}, which is no scale for each block of "
            f"{BLOCK} by {BLOCK} numbers of {shape}; get the files again"
        )
    return shape


class Fp8Source(PackedSource):
    """Another source's tensors, those in FP8 multiplied by their blocks' scales."""

    def unpack(self, name: str) -> Tensor:
        numbers, scales = self.source.read(name), self.source.read(name + SCALE).float()
        rows, columns = numbers.shape
        scales = scales.repeat_interleave(BLOCK, 1)[:, :columns].repeat_interleave(BLOCK, 0)[:rows]
        return scales.mul_(numbers.float()).to(torch.bfloat16)
