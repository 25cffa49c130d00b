"""What products are made in."""

from __future__ import annotations

import pytest
import torch

from anyformer.training.precision import bfloat16_is_fast, products_in

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "amx", "fast"), [("AVX512", False, False), ("AVX512", True, True), ("SVE256", False, True)]
)
def test_bfloat16_is_used_where_it_is_faster(
    capability: str, amx: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an x86 CPU with AMX and not without; elsewhere always; and never where it is not asked for."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert bfloat16_is_fast(CPU) is fast and bfloat16_is_fast(torch.device("cuda"))
    x = torch.ones(2, 2)
    with products_in("bfloat16", CPU):
        assert (x @ x).dtype == (torch.bfloat16 if fast else torch.float32)
    with products_in("float32", CPU):
        assert (x @ x).dtype == torch.float32
