"""Layer normalisation and its root-mean-square form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import spec
from anyformer.parts.kernels import native, rows
from anyformer.parts.kernels.native.loading import LAYER, OFFSET, RMS


class Norm(nn.Module):
    """y = (x - mean) / √(variance + eps) · w + b  (Ba et al. 2016, eq. 4), or  x / √(mean(x²) + eps) · w  (Zhang &
    Sennrich 2019, eq. 4), over the last dimension, statistics in float32. With `unit_offset` the factor is 1 + w.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, norm: spec.Norm, dim: int) -> None:
        super().__init__()
        self.shape, self.eps, self.rms, self.unit_offset = (dim,), norm.eps, norm.kind == "rms", norm.unit_offset
        #: As the native kernels have it.
        self.kind = (RMS if self.rms else LAYER) | (OFFSET if self.unit_offset else 0)
        start = torch.zeros if norm.unit_offset else torch.ones
        self.register_parameter("weight", nn.Parameter(start(dim)) if norm.weight else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(dim)) if norm.bias else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.added(x, None)

    def added(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """residual + norm(x), in one operation where the native kernel serves."""
        if native.few(x) and self.fits(x):
            return native.normed(x, self, residual)
        y = self._over_rows(x)
        return y if residual is None else residual + y

    def _over_rows(self, x: Tensor) -> Tensor:
        weight = self._parameters["weight"]
        own = [x] if weight is None else [x, weight]
        # torch has a kernel of its own for the norm with a mean, as fast as ours.
        if self.rms and self._parameters["bias"] is None and x.dtype == torch.float32 and rows.serves(*own):
            return rows.normed(x, weight, self.kind, self.eps, self._plain)
        return self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """The norm in torch's operations."""
        return self._plain(x, self.weight, self.bias)

    def _plain(self, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        if not self.unit_offset:
            return self._normalize(x, weight, bias)
        assert weight is not None
        # At least float32: 1 + w would lose most of a bfloat16 w.
        wide = torch.promote_types(x.dtype, torch.float32)
        bias = None if bias is None else bias.to(wide)
        return self._normalize(x.to(wide), 1 + weight.to(wide), bias).to(x.dtype)

    def _normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        # Under autocast what comes in is narrower than the weights.
        x = x if weight is None else x.to(weight.dtype)
        if self.rms:
            return F.rms_norm(x, self.shape, weight, self.eps)
        return F.layer_norm(x, self.shape, weight, bias, self.eps)

    def fits(self, x: Tensor) -> bool:
        """Whether a native kernel can take this norm in, before what it does to x."""
        weight = self._parameters["weight"]
        return (weight is None or weight.dtype == x.dtype) and not self._forward_hooks

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {'rms' if self.rms else 'layer'}, eps={self.eps}"


def norm_of(norm: spec.Norm | None, dim: int) -> Norm | None:
    """The module of a norm that may be absent."""
    return None if norm is None else Norm(norm, dim)
