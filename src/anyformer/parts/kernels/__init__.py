"""Interchangeable attention kernels: one reference, and others that are tested against it.

Each is a module with `attend(q, k, v, visible, scores)` and `limits(...)`, which says by name what it cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor

from anyformer.errors import KernelError
from anyformer.parts.kernels import banded, flex, online, reference, sdpa
from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible

#: By name, in the order in which `auto` asks them.
KERNELS: dict[str, ModuleType] = {
    "banded": banded,
    "sdpa": sdpa,
    "flex": flex,
    "reference": reference,
    "online": online,
}

#: Above this many scores at a time, tiles instead of the whole matrix.
LARGEST_MATRIX = 1 << 24

_chosen: str = "auto"


@contextmanager
def use(name: str) -> Iterator[None]:
    """Within this block, the kernel `name` serves all attention ("auto": whichever fits best). Raises `KernelError`
    if there is none of that name, and, when it is asked for something that it cannot do, says what."""
    global _chosen
    if name != "auto" and name not in KERNELS:
        raise KernelError(f"no attention kernel is called '{name}'; there are auto, {', '.join(KERNELS)}")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Attention [B, H, T, C] of queries [B, H, T, C] over keys and values [B, K, S, C], by the kernel that fits."""
    if visible.form == "documents":
        return _documents(q, k, v, visible, scores)
    return _kernel(q, k, visible, scores).attend(q, k, v, visible, scores)


def _kernel(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> ModuleType:
    if _chosen != "auto":
        reason = KERNELS[_chosen].limits(q, k, visible, scores)
        if reason is not None:
            raise KernelError(
                f"the kernel '{_chosen}' cannot serve this attention: {reason}; use 'auto' or 'reference'"
            )
        return KERNELS[_chosen]
    if visible.form == "band" and banded.limits(q, k, visible, scores) is None:
        return banded
    if sdpa.limits(q, k, visible, scores) is None:
        return sdpa
    if q.is_cuda and not torch.is_grad_enabled() and flex.limits(q, k, visible, scores) is None:
        return flex
    return reference if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= LARGEST_MATRIX else online


def _documents(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Packed documents one by one: never a dense mask, and no work on pairs that cannot see each other."""
    lengths = [length for length, _ in visible.parts]
    spans = zip(*(x.transpose(1, 2).flatten(0, 1).split(lengths) for x in (q, k, v)), strict=True)
    out = [
        attend(*(x.transpose(0, 1)[None] for x in span), part, scores)[0].transpose(0, 1)
        for span, (_, part) in zip(spans, visible.parts, strict=True)
    ]
    return torch.cat(out).unflatten(0, (q.shape[0], -1)).transpose(1, 2)


__all__ = ["KERNELS", "Scores", "attend", "use"]
