"""Tensors that lie over many processes, each of which has a part (torch's DTensor); all others are whole everywhere."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def mesh_of(tensor: Tensor) -> Any:
    """The mesh of processes that a tensor lies over; None where this process has all of it."""
    return getattr(tensor, "device_mesh", None)


def is_laid(tensor: Tensor) -> bool:
    """Whether a tensor lies over many processes."""
    return mesh_of(tensor) is not None


def local(tensor: Any) -> Tensor:
    """This process' part of a tensor."""
    return tensor.to_local() if is_laid(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a tensor, gathered where it lies over many processes; each of them must ask."""
    return tensor.full_tensor() if is_laid(tensor) else tensor


def parts(tensor: Any, other: Tensor) -> tuple[Tensor, Tensor]:
    """What this process has of a tensor, and the same part of another of its shape, which is whole."""
    if not is_laid(tensor):
        return tensor, other
    (part,) = tensor.__create_chunk_list__()
    ranges = zip(part.offsets, part.sizes, strict=True)
    return tensor.to_local(), other[tuple(slice(begin, begin + size) for begin, size in ranges)]


def place(parameter: Tensor, numbers: Tensor) -> None:
    """Give a parameter its numbers, in place; of those of a mapped file this process' part is read alone."""
    here, numbers = parts(parameter, numbers)
    here.copy_(numbers)
