"""Muon for matrices that lie over many processes, held to that of one."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from anyformer.training.muon import Muon
from anyformer.training.scale.sharded_muon import ShardedMuon


def test_an_update_is_that_of_one_process(one_rank: None) -> None:
    """Matrices as they are and as DTensors, wide and tall, over several steps with momentum and decay: the same weights
    and momenta, but for the rounding of one sum."""
    settings = {"lr": 1e-2, "weight_decay": 0.1}
    weights = [torch.randn(6, 10), torch.randn(10, 6), torch.randn(4, 4)]
    mesh = init_device_mesh("cpu", (1,))
    plain = [nn.Parameter(weight.clone()) for weight in weights]
    laid = [nn.Parameter(distribute_tensor(weight.clone(), mesh, [Shard(0)])) for weight in weights[:2]]
    laid.append(nn.Parameter(weights[2].clone()))
    alone, ours = Muon([{"params": plain, **settings}]), ShardedMuon([{"params": laid, **settings}])
    for _ in range(4):
        for one, other in zip(plain, laid):
            one.grad = torch.randn_like(one)
            other.grad = distribute_tensor(one.grad, mesh, [Shard(0)]) if other is not laid[2] else one.grad.clone()
        alone.step()
        ours.step()
    for one, other in zip(plain, laid):
        whole = other.full_tensor() if other is not laid[2] else other
        torch.testing.assert_close(whole, one, rtol=0, atol=1e-7)
        momentum = ours.state[other]["momentum_buffer"]
        momentum = momentum.full_tensor() if other is not laid[2] else momentum
        assert torch.equal(momentum, alone.state[one]["momentum_buffer"])
