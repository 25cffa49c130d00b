"""Layer normalisation and its root-mean-square form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import spec


class Norm(nn.Module):
    """y = (x - mean) / √(variance + eps) · w + b  (Ba et al. 2016, eq. 4), or  x / √(mean(x²) + eps) · w  (Zhang &
    Sennrich 2019, eq. 4), over the last dimension, statistics in float32. With `unit_offset` the factor is 1 + w.
    """

    def __init__(self, norm: spec.Norm, dim: int) -> None:
        super().__init__()
        self.shape, self.eps, self.rms, self.unit_offset = (dim,), norm.eps, norm.kind == "rms", norm.unit_offset
        start = torch.zeros if norm.unit_offset else torch.ones
        self.weight = nn.Parameter(start(dim)) if norm.weight else None
        self.bias = nn.Parameter(torch.zeros(dim)) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.unit_offset:
            assert self.weight is not None
            # In float32: 1 + w would lose most of a bfloat16 w.
            weight = 1 + self.weight.float()
            return (F.rms_norm(x.float(), self.shape, weight, self.eps) if self.rms else self._layer(x, weight)).to(
                x.dtype
            )
        return F.rms_norm(x, self.shape, self.weight, self.eps) if self.rms else self._layer(x, self.weight)

    def _layer(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return F.layer_norm(x if weight is None else x.to(weight.dtype), self.shape, weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {'rms' if self.rms else 'layer'}, eps={self.eps}"


def norm_of(norm: spec.Norm | None, dim: int) -> Norm | None:
    """The module of a norm that may be absent."""
    return None if norm is None else Norm(norm, dim)
