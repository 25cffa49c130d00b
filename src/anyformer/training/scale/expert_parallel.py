"""Expert parallelism: every rank holds some of a mixture's experts, and tokens travel to theirs and back.

    this rank's tokens, sorted by expert ──┐ all to all ┌── rows for the experts here, from every rank
    weighted and summed for each token   ──┘ all to all └── what the experts made of them

What is sent is N · top_k rows of D numbers, there and back, however many ranks there are (Lepikhin et al. 2020, section
3.2, without a capacity: no token is dropped). How many go where is only known when the router has spoken, so the host
waits for it once a layer.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from anyformer import spec
from anyformer.model import Transformer
from anyformer.model.laid import local
from anyformer.parts.experts import Experts
from anyformer.parts.quantized import QuantizedMatrices
from anyformer.training.scale.meshes import Common, Exchange, exchange


def divide_experts(model: Transformer, mesh: DeviceMesh) -> list[Common]:
    """Divide the experts of every mixture over the ranks of `mesh`; the parameters that those have in common."""
    group, common = mesh.get_group(), []
    for mixture in model.modules():
        if not isinstance(mixture, Experts):
            continue
        stacked = {name for name, _ in mixture.named_parameters(recurse=False)} & set(spec.RoutedExperts.STACKED)
        for name in stacked:
            here = distribute_tensor(getattr(mixture, name).data, mesh, [Shard(0)], src_data_rank=None)
            mixture.register_parameter(name, nn.Parameter(here))
        for owner, module in mixture.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                if owner or name not in stacked:
                    common.append((module, name, group))
        mixture.combine = partial(combine, mixture, group)  # type: ignore[method-assign]
    return common


def combine(mixture: Experts, group: dist.ProcessGroup, x_ND: Tensor, weight_NK: Tensor, chosen_NK: Tensor) -> Tensor:
    """What `Experts.combine` computes, [N, D], with experts of other ranks."""
    ranks = dist.get_world_size(group)
    expert, order = chosen_NK.flatten().sort(stable=True)
    token = order // mixture.top_k
    sent_E = torch.bincount(expert, minlength=mixture.experts)
    even = [mixture.experts // ranks] * ranks
    received_E = exchange(sent_E, even, even, group)
    sent, received = (counts.view(ranks, -1).sum(1).tolist() for counts in (sent_E, received_E))
    rows = Exchange.apply(x_ND[token], received, sent, group)
    made = Exchange.apply(_experts_here(mixture, rows, received_E.view(ranks, -1)), sent, received, group)
    return torch.zeros_like(x_ND).index_add(0, token, made * weight_NK.flatten()[order, None])


def _experts_here(mixture: Experts, rows: Tensor, counts_RE: Tensor) -> Tensor:
    """The feed-forwards of this rank's experts, for rows that come from each rank R sorted by expert E."""
    ranks, here = counts_RE.shape
    belongs = torch.arange(here, device=rows.device).repeat(ranks).repeat_interleave(counts_RE.flatten())
    expert, order = belongs.sort(stable=True)
    ends = counts_RE.sum(0).cumsum(0).int()
    counts = None if mixture.groupable(rows) and len(rows) else counts_RE.sum(0).tolist()

    def multiply(x: Tensor, weight: Tensor | QuantizedMatrices, bias: Tensor | None) -> Tensor:
        weight, bias = local(weight).to(x.dtype), None if bias is None else local(bias)
        if counts is None:
            product = F.grouped_mm(x, weight.transpose(-1, -2), offs=ends)
        else:
            product = torch.cat([part @ own.T for part, own in zip(x.split(counts), weight)])
        return product if bias is None else product + bias[expert]

    made = mixture.feed_forward(rows[order], multiply)
    return torch.empty_like(made).index_copy(0, order, made)
