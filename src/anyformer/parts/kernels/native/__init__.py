"""Native kernels: what decides the speed on CPUs.

    linear      residual + act(norm(x) Wᵀ + b) for few rows x, from a matrix in any format
    attention   few queries over many keys
    rotary      heads turned in place
    normed      residual + norm(x)
    added       residual + x
    choose      each token's experts, of a router's logits
    experts     the weighted sum of what a token's experts make of it
    heads       few rows' heads, each times a matrix of its own
    joined      heads' channels one after the other
    keep        new keys and values into their slots of a cache
    expand      a matrix in blocks as numbers, for products of many rows
    spans       many queries, each over one span of the keys, and the gradients
    norm_rows, activated_rows
                what stands between the products of many rows, and the gradients

They are compiled when the package is installed (`building.py`). Where there was no compiler everything runs on plain
torch, and `library` says so once. torch sees them as its own operators (`calls.py`, `headwise.py`, `mixtures.py`,
`many.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from anyformer.parts.kernels.native.calls import (
    added,
    attention,
    expand,
    keep,
    linear,
    normed,
    rotary,
    strides_of,
)
from anyformer.parts.kernels.native.headwise import heads, joined
from anyformer.parts.kernels.native.loading import KEPT, TYPES, library, narrow_pays
from anyformer.parts.kernels.native.many import (
    activated_rows,
    activated_rows_back,
    norm_rows,
    norm_rows_back,
    spans,
    spans_back,
)
from anyformer.parts.kernels.native.mixtures import choose, experts

#: Up to so many rows a product is ours: it reads weights faster than others, and takes in what stands around it.
FEW = 32


def few(x: Tensor) -> bool:
    """Whether the native kernels are the ones for x [..., D]: few rows on a CPU, without gradients."""
    return x.numel() <= FEW * x.shape[-1] and fits(x)


def fits(x: Tensor) -> bool:
    """Whether the native kernels can take x: on a CPU, without gradients, channels side by side."""
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype in TYPES
        and x.stride(-1) == 1
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and library() is not None
    )


__all__ = [
    "FEW",
    "KEPT",
    "TYPES",
    "activated_rows",
    "activated_rows_back",
    "added",
    "attention",
    "choose",
    "expand",
    "experts",
    "few",
    "fits",
    "heads",
    "joined",
    "keep",
    "library",
    "linear",
    "narrow_pays",
    "norm_rows",
    "norm_rows_back",
    "normed",
    "rotary",
    "spans",
    "spans_back",
    "strides_of",
]
