"""A model whose matrices stay in few bits: which of them, in which format, and what keeps its floats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch

from anyformer import spec
from anyformer.checkpoints import Checkpoint
from anyformer.checkpoints.quantizing import fitting, quantize
from anyformer.errors import CheckpointError, InputError
from anyformer.model.transformer import Transformer
from anyformer.parts.blocks import FORMATS, Blocks
from anyformer.parts.experts import Experts
from anyformer.parts.linear import Embedding, Linear, SideBySide
from anyformer.parts.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedMatrices, lay_side_by_side

#: The format of most matrices of a model that is quantised as it is loaded.
FORMAT_OF = {"int8": "Q8_0", "int4": "Q4_K"}
#: Leaves what a GGUF file holds; of formats that models do not compute with, in the one that loses next to nothing.
KEEP, NEAREST = "keep", "Q8_0"
#: Matrices too small to gain anything, by the last step of their names.
SMALL = {
    "router": "a router, small and decisive",
    "shared_gate": "a gate of one row",
    "segments": "a table of few rows",
}


@dataclass(frozen=True)
class Quantization:
    """What became of a model's matrices.

    how      as it was asked for: int8, int4 or keep
    formats  {name of a linear or embedding: the format of its matrix}
    whole    {name of one that keeps its floats: why}
    bytes    what all blocks take
    """

    how: str
    formats: Mapping[str, str]
    whole: Mapping[str, str]
    bytes: int

    def __str__(self) -> str:
        said = [f"{count} matrices in {name}" for name, count in Counter(self.formats.values()).most_common()]
        said += [f"{count} in floats: {reason}" for reason, count in Counter(self.whole.values()).most_common()]
        return "; ".join(said)


def unfilled(checkpoint: Checkpoint, how: str, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """The model of a checkpoint with its blocks in place; whatever is no block is still to be filled.

    Raises `InputError` for a `how` that does not exist, and for `keep` where the checkpoint holds no blocks.
    """
    if how not in FORMAT_OF and how != KEEP:
        raise InputError(
            f"a model is quantised to {', '.join(FORMAT_OF)}, or {KEEP} as its file has it, not to '{how}'"
        )
    if how == KEEP and not checkpoint.quantised:
        raise InputError(f"{checkpoint.origin} holds no blocks to keep; int8 or int4 quantises it as it is loaded")
    with torch.device("meta"):
        model = Transformer(checkpoint.spec).to(dtype)
    found = _replace_matrices(model, checkpoint, how, dtype) | _replace_experts(model, checkpoint, how)
    # As `building.unfilled` does, but for the blocks, which have come to stay.
    model._apply(
        lambda tensor: (
            torch.empty(tensor.shape, dtype=tensor.dtype, device=device) if tensor.is_meta else tensor.to(device)
        )
    )
    model.tie()
    for module in model.modules():
        if isinstance(module, SideBySide):
            lay_side_by_side(module.side_by_side())
    blocks = {name: each for name, each in found.items() if isinstance(each, Blocks)}
    formats = {name: each.format.name for name, each in blocks.items()}
    whole = {name: each for name, each in found.items() if isinstance(each, str)}
    distinct = {id(each): each for each in blocks.values()}  # what is tied counts once
    size = sum(each.data.numel() for each in distinct.values())
    model.quantization = Quantization(how, formats, whole, size)
    return model.requires_grad_(False)


def _replace_matrices(
    model: Transformer, checkpoint: Checkpoint, how: str, dtype: torch.dtype
) -> dict[str, Blocks | str]:
    """Put linears and embeddings in blocks into the places of those in floats: by name, the blocks or why there are
    none."""
    found: dict[str, Blocks | str] = {}
    made: dict[int, Blocks] = {}  # by the matrix's identity: what the spec ties is one matrix of several modules
    for name, module in list(model.named_modules()):  # which holds what is replaced, so that no identity comes again
        if type(module) not in (Linear, Embedding):
            continue
        assert isinstance(module, Linear | Embedding)
        matrix = id(module.weight)
        blocks = found[name] = made.get(matrix) or _blocks(checkpoint, how, name, model)
        if isinstance(blocks, Blocks):
            made[matrix] = blocks
            linear = isinstance(module, Linear)
            quantized = QuantizedLinear(blocks, module.bias) if linear else QuantizedEmbedding(blocks, dtype)
            model.set_submodule(name, quantized)
    return found


def _replace_experts(model: Transformer, checkpoint: Checkpoint, how: str) -> dict[str, Blocks | str]:
    """As `_replace_matrices`, of the matrices of experts, which are stacked in one tensor."""
    found: dict[str, Blocks | str] = {}
    experts = [(name, module) for name, module in model.named_modules() if isinstance(module, Experts)]
    for (name, module), child in product(experts, ("gate", "up", "down")):
        if getattr(module, child) is None:
            continue
        blocks = found[f"{name}.{child}"] = _converted(checkpoint, how, f"{name}.{child}", table=False)
        if isinstance(blocks, Blocks):
            delattr(module, child)
            module.add_module(child, QuantizedMatrices(blocks))
    return found


def _blocks(checkpoint: Checkpoint, how: str, name: str, model: Transformer) -> Blocks | str:
    """The blocks of a module's matrix, or the reason why it has none."""
    parent, _, child = name.rpartition(".")
    reader = model.get_submodule(parent)
    if child in SMALL:
        return SMALL[child]
    if child in getattr(reader, "read_whole", ()):
        return "read otherwise than by products"
    if parent == "head" and not isinstance(checkpoint.spec.head, spec.LanguageModelHead | spec.MaskedLanguageModelHead):
        return "a head of few labels"
    table = isinstance(model.get_submodule(name), Embedding) or name == "head.output"
    return _converted(checkpoint, how, f"{name}.weight", table=table)


def _converted(checkpoint: Checkpoint, how: str, matrix: str, *, table: bool) -> Blocks | str:
    """The blocks of a tensor [..., out, in] of a checkpoint, or the reason why it has none."""
    kept = checkpoint.blocks.get(matrix)
    if how == KEEP and (kept is not None or matrix not in checkpoint.quantised):
        return kept or "not in blocks in the file"
    wanted = FORMATS[FORMAT_OF.get(how, NEAREST)]
    if kept is not None and kept.format.bits <= wanted.bits:
        return kept  # more bits would bring back nothing
    tensor = checkpoint.tensors[matrix]
    format = fitting(wanted, tensor.shape[-1], table=table)
    if format is None:
        return "rows are no whole blocks"
    if kept is not None and kept.format == format:
        return kept
    try:
        return quantize(tensor, format)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.origin}: {matrix}: {error}") from None
