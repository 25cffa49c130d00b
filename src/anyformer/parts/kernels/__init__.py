"""Interchangeable attention kernels: one reference, and others that are tested against it.

Each is a module with `attend(q, k, v, visible, scores)` and `limits(...)`, which says by name what it cannot do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

from anyformer.errors import KernelError
from anyformer.parts.kernels import banded, documents, few, flex, native, online, products, reference, sdpa, spans, wide
from anyformer.parts.kernels.int8_rows import Int8Rows, numbers
from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible

#: By name, in the order in which `auto` asks them.
KERNELS: dict[str, ModuleType] = {
    "few": few,
    "spans": spans,
    "banded": banded,
    "products": products,
    "sdpa": sdpa,
    "flex": flex,
    "reference": reference,
    "online": online,
}

#: Above this many scores at a time, tiles instead of the whole matrix.
LARGEST_MATRIX = 1 << 24


@dataclass
class Use:
    """A kernel chosen by name, and what became of it: how often it served, and why it could not."""

    kernel: ModuleType
    name: str
    fall_back: bool
    served: int = 0
    refused: set[str] = field(default_factory=set)


_chosen: Use | None = None


@contextmanager
def use(name: str, fall_back: bool = False) -> Iterator[Use | None]:
    """Within this block, the kernel `name` serves all attention ("auto": whichever fits best).

    Where it is asked for something that it cannot do, `KernelError` says what, or, with `fall_back`, the reference
    serves instead. Raises `KernelError` if no kernel is called that.
    """
    global _chosen
    if name != "auto" and name not in KERNELS:
        raise KernelError(f"no attention kernel is called '{name}'; there are auto, {', '.join(KERNELS)}")
    before = _chosen
    _chosen = None if name == "auto" else Use(KERNELS[name], name, fall_back)
    try:
        yield _chosen
    finally:
        _chosen = before


def attend(q: Tensor, k: Tensor | Int8Rows, v: Tensor | Int8Rows, visible: Visible, scores: Scores) -> Tensor:
    """Attention [B, H, T, C] of queries [B, H, T, C] over keys and values [B, K, S, C], by the kernel that fits.

    Keys and values in 8 bits are read as they lie by the kernel of few queries; for any other they become numbers."""
    if isinstance(k, Int8Rows) or isinstance(v, Int8Rows):
        if _chosen is None and few.pays(q) and few.limits(q, k, visible, scores) is None:
            return few.attend(q, k, v, visible, scores)
        k, v = numbers(k, q.dtype), numbers(v, q.dtype)
    if _chosen is None and wide.pays(q) and not few.pays(q):
        with torch.autocast("cpu", enabled=False):
            return attend(q.float(), k.float(), v.float(), visible, scores).to(q.dtype)
    if visible.form == "documents" and not _by_spans(q, k, visible, scores):
        return documents.attend(q, k, v, visible, lambda q, k, v, part: attend(q, k, v, part, scores))
    return _kernel(q, k, visible, scores).attend(q, k, v, visible, scores)


def prepare(visible: Visible, scores: Scores, dtype: torch.dtype) -> None:
    """Make now what `attend`, on queries of `dtype`, would make and leave in `visible` for later layers to find."""
    widened = dtype == torch.bfloat16 and not native.narrow_pays()
    if spans.refuses(torch.float32 if widened else dtype, visible, scores) is None:
        return
    if visible.form == "documents":
        for _, part in documents.layout(visible).groups:
            prepare(part, scores, dtype)
    if scores.bias is not None and visible.form not in ("documents", "band"):
        visible.added(scores.bias, sdpa.width_of_bias(dtype, visible.q.position.device))


def _by_spans(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> bool:
    """Whether the kernel of spans serves."""
    if _chosen is not None and _chosen.kernel is not spans:
        return False
    return spans.limits(q, k, visible, scores) is None and (_chosen is not None or spans.pays(q, k))


def _kernel(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> ModuleType:
    if _chosen is not None:
        reason = _chosen.kernel.limits(q, k, visible, scores)
        if reason is None:
            _chosen.served += 1
            return _chosen.kernel
        if not _chosen.fall_back:
            raise KernelError(
                f"the kernel '{_chosen.name}' cannot serve this attention: {reason}; use 'auto' or 'reference'"
            )
        _chosen.refused.add(reason)
        return reference
    if few.pays(q) and few.limits(q, k, visible, scores) is None:
        return few
    if _by_spans(q, k, visible, scores):
        return spans
    if visible.form == "band" and banded.limits(q, k, visible, scores) is None:
        return banded
    if products.pays(q, k, scores) and products.limits(q, k, visible, scores) is None:
        return products
    # A step of decoding on a GPU, whose keys are a bucket of slots with some hidden, comes here too: its mask is one
    # row, laid out once for all layers. FlexAttention would leave out what is hidden and spread a row's keys over more
    # of the device, but finds the blocks anew in every layer and has to be compiled: it serves what this cannot.
    if sdpa.limits(q, k, visible, scores) is None:
        return sdpa
    if q.is_cuda and not torch.is_grad_enabled() and flex.limits(q, k, visible, scores) is None:
        return flex
    return reference if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= LARGEST_MATRIX else online


__all__ = ["KERNELS", "Scores", "attend", "prepare", "use"]
