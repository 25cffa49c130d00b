"""A layer: branches along the residual stream."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import spec
from anyformer.parts.attention import Attention
from anyformer.parts.cache import LayerCache
from anyformer.parts.context import Context
from anyformer.parts.experts import Experts
from anyformer.parts.feedforward import FeedForward
from anyformer.parts.kernels import native
from anyformer.parts.norms import Norm

MIXERS: dict[str, type[nn.Module]] = {
    "attention": Attention,
    "feed_forward": FeedForward,
    "mixture_of_experts": Experts,
}


def build_mixer(mixer: spec.Mixer, dim: int, source_dim: int | None) -> nn.Module:
    """The module that runs a mixer; a family's own kind says itself which."""
    if isinstance(mixer, spec.Attention):
        return Attention(mixer, dim, source_dim if mixer.source == "cross" else None)
    return (MIXERS.get(mixer.kind) or mixer.module())(mixer, dim)


class Block(nn.Module):
    """Branches in the order of the spec, each normalised where its placement says:

    pre     x + f(n(x))       post    n(x + f(x))
    output  x + n(f(x))       both    x + n'(f(n(x)))

    A parallel block reads one x for all branches and sums what they give.
    """

    def __init__(self, block: spec.Block, dim: int, source_dim: int | None = None) -> None:
        super().__init__()
        self.parallel = block.parallel
        self.branches: list[tuple[str, str, bool, float]] = []
        #: Those whose mixers can take in their norm and the stream.
        self.takes = {b.name for b in block.branches if isinstance(b.mixer, spec.Attention | spec.FeedForward)}
        #: Whether few rows may take fewer operations than the branches have; whether branches share what a norm makes.
        self.joint = True
        self.shares = any(branch.norm == "shared" for branch in block.branches)
        for branch in block.branches:
            self.add_module(branch.name, build_mixer(branch.mixer, dim, source_dim))
            shared = branch.norm == "shared"
            if isinstance(branch.norm, spec.Norm):
                self.add_module(f"{branch.name}_norm", Norm(branch.norm, dim))
                if branch.placement == "both":
                    self.add_module(f"{branch.name}_output_norm", Norm(branch.norm, dim))
            placement = branch.placement if branch.norm is not None else "bare"
            self.branches.append((branch.name, placement, shared, branch.dropout))

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        # Of few rows a mixer that can is handed its norm and the stream, and takes both in.
        few = self.joint and not self.training and native.few(x)
        modules: dict[str, Any] = self._modules
        stream = normed = x
        for name, placement, shared, dropout in self.branches:
            mixer: Any = modules[name]
            takes = few and name in self.takes
            norm: Any = modules.get(f"{name}_norm")
            read, before = x if self.parallel else stream, None
            if placement in ("pre", "both"):
                if takes and not self.shares:
                    before = norm
                else:
                    read = normed = normed if shared or norm is None else norm(read)
            after: Any = norm if placement == "output" else modules.get(f"{name}_output_norm")
            if takes and after is None:
                stream = mixer(read, context, cache, before, stream)
            elif few:
                out = mixer(read, context, cache, before) if takes else mixer(read, context, cache)
                stream = native.added(out, stream) if after is None else after.added(out, stream)
            else:
                out = mixer(read, context, cache)
                out = out if after is None else after(out)
                stream = stream + (F.dropout(out, dropout) if dropout and self.training else out)
            if placement == "post" and norm is not None:
                stream = norm(stream)
        return stream
