"""A family from outside the package, in one file, gets everything: load, save, generate, verify."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer import families
from anyformer.errors import SpecError
from anyformer.families import registry
from anyformer.families.family import Family


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """The toy family, registered for one test."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    sys.modules.pop("toy", None)
    yield importlib.import_module("toy").family
    sys.modules.pop("toy", None)


def test_it_builds_saves_and_loads(toy: Family, tmp_path: Path) -> None:
    """What was built is saved under the family's own names and layouts, and loads as the same model."""
    model = af.build(families.named("toy")("tiny"), seed=1).eval()
    model.save(tmp_path / "first")
    saved = load_file(tmp_path / "first" / "model.safetensors")
    assert saved["toy.h.0.qkv.weight"].shape == (30, (5 + 2) * 4)
    assert saved["toy.h.0.qkv.bias"].shape == ((5 + 2) * 4,)
    assert saved["toy.h.1.inward.weight"].shape == (30, 2 * 41)
    again = af.load(tmp_path / "first", device="cpu")
    assert (again.family, again.spec, again.generation) == ("toy", model.spec, {"eos_token_id": 0})
    ids = torch.arange(12).reshape(2, 6)
    assert torch.equal(again(ids).logits, model(ids).logits)
    again.save(tmp_path / "second")
    second = load_file(tmp_path / "second" / "model.safetensors")
    assert saved.keys() == second.keys() and all(torch.equal(saved[name], second[name]) for name in saved)


def test_it_generates(toy: Family) -> None:
    """The cached loop writes what the uncached model finds most likely."""
    model = af.build(toy("tiny", hidden=17), seed=2).eval()
    ids = torch.tensor([[5, 9, 2]])
    for _ in range(8):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(ids[:, :3], max_new_tokens=8), ids[:, 3:])


def test_it_is_verified(toy: Family) -> None:
    """The contract holds for it: every kernel, cache, batch and packing gives one answer."""
    checks = af.verify(af.build(toy("tiny"), seed=3).eval(), against_transformers=False)
    assert [check.name for check in checks if check.verdict == "differs"] == []
    assert sum(check.verdict == "same" for check in checks) > 4


def test_what_it_leaves_aside_is_carried(toy: Family, tmp_path: Path) -> None:
    """Its own unread tensors and its own defaults are accounted for as any family's."""
    af.build(toy("tiny"), seed=1).save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    save_file({**saved, "toy.slopes": torch.ones(5)}, tmp_path / "model.safetensors")
    model = af.load(tmp_path, device="cpu")
    assert model.carried is not None
    assert model.carried.reasons["toy.slopes"] == "ALiBi's slopes follow from the number of heads"
    model.save(tmp_path / "again")
    assert torch.equal(load_file(tmp_path / "again" / "model.safetensors")["toy.slopes"], torch.ones(5))
    with pytest.raises(SpecError, match="rotary is true"):
        toy("tiny", rotary=True)


def test_installed_packages_are_found(toy: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package's entry point is loaded when families are looked up; one that fails to import is named and left out."""
    registry._FAMILIES.pop("toy")
    sys.modules.pop("toy")
    points = [
        EntryPoint("toy", "toy:family", "anyformer.families"),
        EntryPoint("broken", "no_such_module_at_all:family", "anyformer.families"),
    ]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: points)
    registry._load_entry_points.cache_clear()
    with pytest.warns(UserWarning, match="'no_such_module_at_all:family' is left out"):
        assert families.find("toy").name == "toy"
    registry._load_entry_points.cache_clear()


def test_two_families_cannot_claim_one_thing(toy: Family) -> None:
    """Names, model types and class names belong to one family each."""
    from dataclasses import replace

    with pytest.raises(SpecError, match=r"toy and other|other and toy"):
        families.register(replace(toy, name="other"))
    with pytest.raises(SpecError, match="both claim LlamaForCausalLM"):
        families.register(replace(toy, name="x", model_types=("x",), architectures={"LlamaForCausalLM": "embedding"}))
    with pytest.raises(SpecError, match="a family called toy already"):
        families.register(replace(toy, model_types=("x",), architectures={"X": "embedding"}))
