"""The rate that a run's speed is measured against."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from anyformer import families, spec
from anyformer.parts.kernels import native
from anyformer.training.watching import peak
from anyformer.training.watching.peak import peak_tokens

CPU = torch.device("cpu")


def preset(name: str) -> spec.Transformer:
    found = families.preset(name)
    assert found is not None
    return found


def test_it_is_measured_once_for_each_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run directory knows of a machine is taken from there; another machine is measured too. Tokens a second are
    the rate over the planner's FLOPs a token, of all processes together."""
    rates = iter([1e9, 2e9])
    monkeypatch.setattr(peak, "matrix_rate", lambda *_: next(rates))
    settings = SimpleNamespace(precision="float32", batch_tokens=512)
    ranks = SimpleNamespace(sizes={"data": 2, "shard": 2})
    described = SimpleNamespace(spec=preset("llama:tiny"))
    here = SimpleNamespace(
        settings=settings, device=CPU, micro_tokens=64, model=described, flops=512_000_000, ranks=ranks
    )
    there = SimpleNamespace(**{**vars(here), "device": "elsewhere"})
    assert peak_tokens(tmp_path, here) == 4000.0  # type: ignore[arg-type]
    assert peak_tokens(tmp_path, there) == 8000.0  # type: ignore[arg-type]
    assert peak_tokens(tmp_path, here) == 4000.0  # type: ignore[arg-type]
    known = json.loads((tmp_path / "peak.json").read_text())
    assert [each["flop_per_second"] for each in known.values()] == [1e9, 2e9]


@pytest.mark.parametrize(
    ("narrow", "pays", "reached", "said"), [(1e9, True, 1e9, 1), (1e9, False, 2e9, 1), (3e9, True, 3e9, 0)]
)
def test_a_precision_that_is_slower_here_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: float, pays: bool, reached: float, said: int
) -> None:
    """Who asks for bfloat16 on a machine that is faster at float32 is told, with the share; nobody else is. Where its
    numbers are widened and multiplied as float32, that rate is what the run is measured against."""
    monkeypatch.setattr(native, "narrow_pays", lambda: pays)
    monkeypatch.setattr(peak, "matrix_rate", lambda spec, rows, dtype, _: narrow if dtype == torch.bfloat16 else 2e9)
    trainer = SimpleNamespace(
        settings=SimpleNamespace(precision="bfloat16", batch_tokens=512),
        device=CPU,
        micro_tokens=64,
        model=SimpleNamespace(spec=preset("llama:tiny")),
        flops=512,
        ranks=SimpleNamespace(sizes={}),
    )
    notes: list[str] = []
    assert peak_tokens(tmp_path, trainer, notes.append) == reached  # type: ignore[arg-type]
    assert len(notes) == said and all("bfloat16 at 50% of the rate of float32" in note for note in notes)
