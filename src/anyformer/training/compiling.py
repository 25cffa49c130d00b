"""Compiling a model for its training: regions, not the whole."""

from __future__ import annotations

import torch

from anyformer.model import Transformer
from anyformer.parts.feedforward import FeedForward


def compile_regions(model: Transformer, asked: bool | None, device: torch.device) -> None:
    """Compile the feed-forward of every layer, once for all layers of one width, in seconds: what surrounds its
    products is fused. Attention, whose masks change from batch to batch, has kernels of its own and stays as it is.

    `asked` None: where it pays, on accelerators; on CPUs it takes longer than it saves. Lengths are left open from the
    beginning, so that a run has the same code, and the same bits, whichever batch it was stopped at.
    """
    if asked if asked is not None else device.type != "cpu":
        for module in model.modules():
            if isinstance(module, FeedForward):
                module.compile(dynamic=True)
