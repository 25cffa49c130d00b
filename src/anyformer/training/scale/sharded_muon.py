"""Muon for matrices that lie over many processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from anyformer.model.laid import whole
from anyformer.training.muon import Muon, orthogonal
from anyformer.training.scale.sharded import part_of


class ShardedMuon(Muon):
    """Muon for parameters of which each process holds a part.

    Momentum stays where the parameter is. A whole matrix is needed only to be made orthogonal: the processes gather as
    many as they are, each orthogonalises one and sends what came of it to all (Liu et al. 2025, section 2.3, in
    rounds). A step moves twice as many numbers as the matrices have.
    """

    @torch.no_grad()
    def step(self) -> None:
        ranks = dist.get_world_size()
        for group, parameters in self.with_gradients():
            for begin in range(0, len(parameters), ranks):
                self._round(group, parameters[begin : begin + ranks])

    def _round(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Update at most as many parameters as there are processes."""
        own: Tensor | None = None
        for owner, parameter in enumerate(parameters):
            matrix = whole(self.with_momentum(group, parameter))
            if owner == dist.get_rank():
                own = orthogonal(matrix[None])[0].contiguous()
        for owner, parameter in enumerate(parameters):
            change = own if owner == dist.get_rank() and own is not None else _empty(parameter)
            dist.broadcast(change, owner)
            self.move(group, parameter, part_of(parameter, change))


def _empty(parameter: Tensor) -> Tensor:
    return torch.empty(parameter.shape, dtype=torch.float32, device=parameter.device)
