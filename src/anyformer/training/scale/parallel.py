"""A model laid over a mesh of processes, with torch's own engine.

tensor     heads and feed-forward widths divided over ranks that read the same rows (Shoeybi et al. 2019, section 3)
expert     a mixture's experts divided over ranks, tokens sent to them (`expert_parallel`)
context    every sequence divided over ranks (`context_parallel`)
data and   parameters, gradients and moments divided over `shard` (and all axes above but tensor), each layer gathered
shard      when it is needed (FSDP2; Rajbhandari et al. 2020), and the whole repeated `data` times

Embeddings and head are divided over `shard` alone: each tensor rank computes all logits.

In bfloat16 the layers are gathered as that, half of the bytes, and computed with as they come; what is kept and summed
is float32, and so are embeddings, head, and the stream between the layers.

A loss is a sum over a rank's own targets, divided by the targets of the whole step, so gradients are summed over ranks
and never averaged.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, PrepareModuleInput, RowwiseParallel, parallelize_module

from anyformer.model import Transformer
from anyformer.model.block import Block
from anyformer.model.laid import local
from anyformer.parts.attention import Attention
from anyformer.parts.context import Context
from anyformer.parts.experts import Experts
from anyformer.parts.feedforward import FeedForward
from anyformer.parts.kernels import Scores
from anyformer.parts.positions import RelativePositions
from anyformer.training.scale.context_parallel import divide_sequences
from anyformer.training.scale.expert_parallel import divide_experts
from anyformer.training.scale.heads import HeadsOf
from anyformer.training.scale.meshes import Common, Meshes


class Laid:
    """A model that lies over a mesh: what the trainer does to all of its ranks together."""

    def __init__(self, model: Transformer, common: Sequence[Common]) -> None:
        self.model, self.common = model, common

    def settle(self) -> None:
        """Put away what the last forward pass gathered."""
        for module in self._sharded():
            module.reshard()

    def is_last(self, last: bool) -> None:
        """Whether the next backward pass is the last of its step: only then do replicas sum their gradients."""
        for module in self._sharded():
            module.set_requires_all_reduce(last)

    @torch.no_grad()
    def clip(self, limit: float) -> float:
        """Finish the gradients of a step, clip them all to the norm `limit`; the norm before."""
        for module, name, group in self.common:
            gradient = getattr(module, name).grad
            if gradient is not None:
                dist.all_reduce(local(gradient), group=group)
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        norm = _norm(gradients, self.model.device)
        if norm > limit:
            for gradient in gradients:
                local(gradient).mul_(limit / (norm + 1e-6))
        return norm

    def _sharded(self) -> Iterator[FSDPModule]:
        return (module for module in self.model.modules() if isinstance(module, FSDPModule))


def lay(model: Transformer, meshes: Meshes, precision: str = "float32") -> Laid:
    """Lay a hollow model over the meshes in place; its products are computed in `precision`. Of the memory that it is
    given next, every rank takes its part."""
    sizes, common = meshes.sizes, []
    if sizes["tensor"] > 1:
        common += divide_tensors(model, meshes.dense["tensor"])
    if sizes["expert"] > 1:
        common += divide_experts(model, meshes.experts["expert"])
    if sizes["context"] > 1:
        divide_sequences(model, meshes.context)
    if math.prod(sizes.values()) > sizes["tensor"]:
        _shard(model, meshes, precision)
    return Laid(model, common)


def divide_tensors(model: Transformer, mesh: DeviceMesh) -> list[Common]:
    """Divide heads and feed-forward widths over the ranks of `mesh`; the parameters that those have in common."""
    group = mesh.get_group()
    heads = HeadsOf(mesh.get_local_rank(), mesh.size())
    common: list[Common] = []
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    for block in blocks:
        # The input that a mixer is to divide is all that it may be handed.
        block.joint = False
    for mixer in [mixer for block in blocks for mixer in block.children()]:
        if isinstance(mixer, Attention):
            _divide(mixer, mesh, ("query", "key", "value"), "output")
            mixer.scores = partial(_cut, mixer.scores, heads)  # type: ignore[method-assign]
        elif isinstance(mixer, FeedForward):
            _divide(mixer, mesh, ("up",) if mixer.gate is None else ("gate", "up"), "down")
    for module in model.modules():
        if isinstance(module, Attention):
            common += [(module, "sinks", group)] if module.sinks is not None else []
            norms = [norm for norm in (module.query_norm, module.key_norm) if norm is not None]
            common += [(norm, name, group) for norm in norms for name, _ in norm.named_parameters()]
        elif isinstance(module, RelativePositions):
            common.append((module, "weight", group))
    return common


def _divide(mixer: nn.Module, mesh: DeviceMesh, inward: Sequence[str], outward: str) -> None:
    """Columns of the matrices that read the input, rows of the one that gives the output."""
    # The input becomes one DTensor for all of them, so that its gradient is summed over the ranks once.
    layouts = (Replicate(), None, None)
    parallelize_module(mixer, mesh, PrepareModuleInput(input_layouts=layouts, desired_input_layouts=layouts))
    parallelize_module(mixer, mesh, {**{name: ColwiseParallel() for name in inward}, outward: RowwiseParallel()})


def _cut(scores: Callable[[Context], Scores], heads: HeadsOf, context: Context) -> Scores:
    return heads(scores(context))


def _shard(model: Transformer, meshes: Meshes, precision: str) -> None:
    """FSDP2 for each layer, and for what is left; a mixture apart, whose experts are not everywhere."""
    of_layers = MixedPrecisionPolicy()
    if precision != "float32":
        # What comes in is the stream, which stays wide.
        narrow = getattr(torch, precision)
        of_layers = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=torch.float32, cast_forward_inputs=False)
    replicated = ("data",) if meshes.sizes["data"] > 1 else ()
    dense, experts = (mesh[(*replicated, "shard")] for mesh in (meshes.dense, meshes.experts))
    for stack in filter(None, (model.encoder, model.decoder)):
        for layer in stack.layers:
            for module in layer.children():
                if meshes.sizes["expert"] > 1 and isinstance(module, Experts):
                    within = partial(_within_experts, experts["shard"].size())
                    fully_shard(module, mesh=experts, shard_placement_fn=within, mp_policy=of_layers)
            fully_shard(layer, mesh=dense, mp_policy=of_layers)
    fully_shard(model, mesh=dense)
    # torch logs advice about gathering whole tensors, which happens when a run is saved.
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
    # What a mixture returns is a view, which a block adds and never changes.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            # Without this, NCCL would be asked for a product that gloo does not have.
            module.set_force_sum_reduction_for_comms(True)


def _within_experts(ranks: int, parameter: nn.Parameter) -> Shard:
    """The dimension that FSDP divides: not that of the experts, which are divided already."""
    return Shard(1 if isinstance(parameter, DTensor) and parameter.shape[1] % ranks == 0 else 0)


def _norm(gradients: Sequence[Tensor], device: torch.device) -> float:
    """The norm of all gradients together, of which each rank has parts; where several have the same, each counts for a
    share of it."""
    by_copies: dict[float, list[Tensor]] = {}
    for gradient in gradients:
        by_copies.setdefault(dist.get_world_size() / _parts(gradient), []).append(local(gradient))
    norms = {copies: torch.nn.utils.get_total_norm(held) for copies, held in by_copies.items()}
    square = torch.zeros((), dtype=torch.float64, device=device)
    for copies, norm in norms.items():
        square += norm.double().square() / copies
    dist.all_reduce(square)
    return square.sqrt().item()


def _parts(tensor: Tensor) -> int:
    """Over how many ranks a tensor is divided."""
    if not isinstance(tensor, DTensor):
        return 1
    return math.prod(
        tensor.device_mesh.size(axis)
        for axis, placement in enumerate(tensor.placements)
        if not placement.is_replicate()
    )
