"""What the products of a training step are made in."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch


def products_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Within, products are in `precision`: "float32", or "bfloat16" where the device is faster at it than at float32.

    Everything else stays float32.
    """
    narrow = precision == "bfloat16" and bfloat16_is_fast(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=narrow)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether products in bfloat16 take less time there than in float32. On an x86 CPU without AMX they take twice as
    long (`benchmarks/RESULTS.md`). Asked of the device, not measured: a resumed run must find the same answer."""
    is_x86 = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2", "AVX512")
    return device.type != "cpu" or not is_x86 or torch.cpu._is_amx_tile_supported()
