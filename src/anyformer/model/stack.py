"""A stack: embeddings, layers, a final norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anyformer import spec
from anyformer.model import graphs, recording
from anyformer.model.block import Block
from anyformer.parts.attention import Attention
from anyformer.parts.context import Context
from anyformer.parts.embeddings import Embeddings
from anyformer.parts.kernels.wide import product_dtype
from anyformer.parts.norms import norm_of
from anyformer.parts.positions import RelativePositions, RotaryAngles, Stretch


class Stack(nn.Module):
    """ids -> embeddings -> layer 0 .. L-1 -> norm -> hidden states [B, T, D].

    With `checkpoint_activations`, what a layer computes for its gradient is computed again in the backward pass instead
    of being kept: of each layer only its input [B, T, D] stays (Chen et al. 2016, section 4.1), for a third more work.
    """

    checkpoint_activations: bool = False

    def __init__(self, stack: spec.Stack, source_dim: int | None = None) -> None:
        super().__init__()
        self.embeddings = Embeddings(stack.embeddings, stack.dim)
        self.layers = nn.ModuleList(Block(block, stack.dim, source_dim) for block in stack.layers())
        self.norm = norm_of(stack.norm, stack.dim)
        self.relative: RelativePositions | None = None
        if stack.relative is not None:
            heads = next(mixer.heads for mixer in stack.attentions() if mixer.source == "self")
            self.relative = RelativePositions(stack.relative, heads)
        self.dropout = stack.dropout

    def forward(self, ids_BT: Tensor, context: Context, segments_BT: Tensor | None = None) -> Tensor:
        replayed = None if segments_BT is not None else graphs.run(self, self.through, ids_BT, context)
        return self.through(ids_BT, context, segments_BT) if replayed is None else replayed

    def through(self, ids_BT: Tensor, context: Context, segments_BT: Tensor | None = None) -> Tensor:
        """One pass, made here and now."""
        context.bias = self.relative
        x = self.embeddings(ids_BT, context.queries, segments_BT)
        if self.checkpoint_activations and torch.is_grad_enabled():
            self.prepare(context, x)
            for layer in self.layers:
                x = _checkpointed(layer, x, context)
        else:
            x = recording.run(self.layers, x, context)
        if self.norm is not None:
            x = self.norm(x)
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def prepare(self, context: Context, x: Tensor) -> None:
        """Make what layers share before the first of them runs: then none makes anything that another could find made,
        so that a layer does the same whenever it runs."""
        dtype = product_dtype(x)
        for module in self.layers.modules():
            if isinstance(module, Attention):
                module.prepare(context, dtype)

    def horizons(self) -> list[int | None]:
        """For each layer, how many keys back its attention can look (None: without bound)."""
        return [_horizon(layer) for layer in self.layers]

    def stretches(self) -> list[Stretch]:
        """The rotary frequencies of its layers that follow the length reached."""
        angles = {getattr(module, "angles", None) for module in self.modules()}
        return [found.stretched for found in angles if isinstance(found, RotaryAngles) and found.stretched is not None]


def _checkpointed(layer: nn.Module, x: Tensor, context: Context) -> Tensor:
    """layer(x), of which only x is kept for the backward pass. There is no cache, which gradients never have."""

    def alone(x: Tensor) -> tuple[Tensor, list[Tensor]]:
        own = context.apart()
        return layer(x, own), own.auxiliary

    x, auxiliary = checkpoint(alone, x, use_reentrant=False)  # type: ignore[misc]
    context.auxiliary += auxiliary
    return x


def _horizon(layer: nn.Module) -> int | None:
    for name, mixer in layer.named_children():
        if name != "cross_attention" and hasattr(mixer, "horizon"):
            return mixer.horizon()  # type: ignore[operator]
    return None
