"""A stack: embeddings, layers, a final norm."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import spec
from anyformer.model.block import Block
from anyformer.parts.context import Context
from anyformer.parts.embeddings import Embeddings
from anyformer.parts.norms import norm_of
from anyformer.parts.positions import RelativePositions, RotaryAngles, Stretch


class Stack(nn.Module):
    """ids -> embeddings -> layer 0 .. L-1 -> norm -> hidden states [B, T, D]."""

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
        context.bias = self.relative
        x = self.embeddings(ids_BT, context.queries, segments_BT)
        for index, layer in enumerate(self.layers):
            x = layer(x, context, None if context.cache is None else context.cache.layers[index])
        if self.norm is not None:
            x = self.norm(x)
        return F.dropout(x, self.dropout) if self.dropout and self.training else x

    def horizons(self) -> list[int | None]:
        """For each layer, how many keys back its attention can look (None: without bound)."""
        return [_horizon(layer) for layer in self.layers]

    def stretches(self) -> list[Stretch]:
        """The rotary frequencies of its layers that follow the length reached."""
        angles = {getattr(module, "angles", None) for module in self.modules()}
        return [found.stretched for found in angles if isinstance(found, RotaryAngles) and found.stretched is not None]


def _horizon(layer: nn.Module) -> int | None:
    for name, mixer in layer.named_children():
        if name != "cross_attention" and hasattr(mixer, "horizon"):
            return mixer.horizon()  # type: ignore[operator]
    return None
