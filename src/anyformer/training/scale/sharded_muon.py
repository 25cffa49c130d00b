"""Muon for matrices that lie over many processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Muon

from anyformer.training.scale.sharded import part_of


class ShardedMuon(Muon):
    """torch's Muon, step for step, for parameters of which each process holds a part.

    Momentum stays where the parameter is. A whole matrix is needed only to be made orthogonal: the processes gather as
    many as they are, each orthogonalises one, by torch's own Muon without momentum, and sends what came of it to all
    (Liu et al. 2025, section 2.3, in rounds). A step moves twice as many numbers as the matrices have.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update. Takes no closure."""
        assert closure is None
        ranks = dist.get_world_size()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for begin in range(0, len(parameters), ranks):
                self._round(group, parameters[begin : begin + ranks])

    def _round(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Update at most as many parameters as there are processes."""
        own: Tensor | None = None
        for owner, parameter in enumerate(parameters):
            whole = _whole(self._with_momentum(group, parameter))
            if owner == dist.get_rank():
                own = _orthogonal(group, whole)
        for owner, parameter in enumerate(parameters):
            change = own if owner == dist.get_rank() and own is not None else _empty(parameter)
            dist.broadcast(change, owner)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(part_of(parameter, change))

    def _with_momentum(self, group: dict[str, Any], parameter: Tensor) -> Tensor:
        gradient, momentum = parameter.grad, group["momentum"]
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(buffer, momentum) if group["nesterov"] else buffer


def _orthogonal(group: dict[str, Any], whole: Tensor) -> Tensor:
    """What torch's Muon adds to a matrix for this gradient, without momentum or decay."""
    still = {"weight_decay": 0.0, "momentum": 0.0, "nesterov": False}
    kept = ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    change = nn.Parameter(torch.zeros_like(whole))
    change.grad = whole
    Muon([change], **still, **{name: group[name] for name in kept}).step()
    return change.data


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _empty(parameter: Tensor) -> Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
