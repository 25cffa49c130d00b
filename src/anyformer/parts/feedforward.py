"""The feed-forward: two matrices, or the gated three."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer import spec
from anyformer.parts.cache import LayerCache
from anyformer.parts.context import Context
from anyformer.parts.kernels import rows
from anyformer.parts.linear import Linear, SideBySide, added, lay_side_by_side, project
from anyformer.parts.norms import Norm

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activated(kind: str, x: Tensor, up: Tensor | None = None) -> Tensor:
    """act(x), or gated act(x) · up, of one shape."""
    plain = ACTIVATIONS[kind]
    if up is None:
        # Of those without a gate torch has kernels as fast as ours, but for this one.
        return rows.activated(x, None, kind, plain) if kind == "gelu_tanh" and rows.serves(x) else plain(x)
    return rows.activated(x, up, kind, plain) if rows.serves(x, up) else plain(x) * up


class FeedForward(SideBySide):
    """down(act(up(x))) (Vaswani et al. 2017, eq. 2), or gated, down(act(gate(x)) · up(x)) (Shazeer 2020, eq. 5)."""

    def __init__(self, feed_forward: spec.FeedForward, dim: int) -> None:
        super().__init__()
        hidden, bias = feed_forward.hidden, feed_forward.bias
        self.gate = Linear(dim, hidden, bias=bias) if feed_forward.gated else None
        self.up = Linear(dim, hidden, bias=bias)
        self.down = Linear(hidden, dim, bias=bias)
        self.kind = feed_forward.activation
        self.dropout = feed_forward.dropout
        lay_side_by_side(self.side_by_side())

    def side_by_side(self) -> list[nn.Module]:
        return [self.up] if self.gate is None else [self.gate, self.up]

    def forward(
        self,
        x_BTD: Tensor,
        context: Context,
        cache: LayerCache | None = None,
        norm: Norm | None = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """f(x); with a norm f(norm(x)); with a residual, that plus it."""
        drops = self.training and self.dropout
        hidden = None if drops else self.product(x_BTD, norm, self.kind, self.gate is not None)
        if hidden is None:
            hidden = self.hidden(x_BTD if norm is None else norm(x_BTD))
        return added(self.down, hidden, residual)

    def hidden(self, x_BTD: Tensor) -> Tensor:
        """What stands between the matrices, [B, T, F]."""
        if self.gate is None:
            hidden = activated(self.kind, self.up(x_BTD))
        else:
            gate, up = project(x_BTD, (self.gate, self.up))
            hidden = activated(self.kind, gate, up)
        return F.dropout(hidden, self.dropout) if self.dropout and self.training else hidden
