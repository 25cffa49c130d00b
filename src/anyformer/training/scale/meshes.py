"""One set of processes as several meshes, which all number the ranks alike."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.distributed.device_mesh import init_device_mesh

from anyformer.training.scale.sizes import Sizes

#: A parameter that the ranks of a group hold in common, but each uses for a part of the work, so that its gradient is
#: their sum: its module, its name, the group.
Common = tuple[nn.Module, str, dist.ProcessGroup]


class Meshes:
    """The ranks of data x shard x context x expert x tensor, as they are divided for:

    dense     data x (shard · context · expert) x tensor: most parameters
    experts   data x (shard · context) x expert x tensor: parameters of which each expert rank has others
    context   the group of this rank's sequences
    """

    def __init__(self, kind: str, sizes: Sizes) -> None:
        data, shard, context, expert, tensor = sizes.values()
        self.sizes = sizes
        self.dense = init_device_mesh(
            kind, (data, shard * context * expert, tensor), mesh_dim_names=("data", "shard", "tensor")
        )
        self.experts = init_device_mesh(
            kind, (data, shard * context, expert, tensor), mesh_dim_names=("data", "shard", "expert", "tensor")
        )
        stretches = init_device_mesh(
            kind, (data * shard, context, expert * tensor), mesh_dim_names=("before", "context", "after")
        )
        self.context = stretches["context"].get_group()


class Exchange(torch.autograd.Function):
    """Rows [Σ sent, ...] to the ranks of a group, `sent` of them to each in turn; rows [Σ received, ...] from each.
    Gradients go back the same way."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: FunctionCtx, rows: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.ways = (sent, received, group)  # type: ignore[attr-defined]
        return exchange(rows, received, sent, group)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return exchange(gradient, *ctx.ways), None, None, None  # type: ignore[attr-defined]


def exchange(rows: Tensor, received: list[int], sent: list[int], group: dist.ProcessGroup) -> Tensor:
    """All to all, without gradients."""
    out = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(out, rows.contiguous(), received, sent, group)
    return out
