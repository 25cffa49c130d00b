"""`verify` says "same" of a sound model, and finds each way in which one can be broken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from anyformer import families, spec
from anyformer.inspection import Check, verify
from anyformer.model import Transformer, build
from anyformer.parts import kernels
from anyformer.parts.cache import Cache
from anyformer.parts.masks import Tokens


def model(family: str = "llama", window: int | None = None) -> Transformer:
    """A tiny model with weights large enough that a mistake shows."""
    described = getattr(families, family)("tiny")
    if window is not None:
        block = described.decoder.pattern[0]
        attention, feed_forward = block.branches
        windowed = attention.replace(mixer=attention.mixer.replace(window=(window, None)))
        block = block.replace(branches=(windowed, feed_forward))
        described = described.replace(decoder=described.decoder.replace(pattern=(block,)))
    net = build(described, seed=0)
    if described.initialization.std is not None:
        # Drawn small: larger, a mistake shows. T5 draws large, and its unscaled softmax would only be left to rounding.
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)
    net.family = family
    return net


def verdicts(checks: list[Check]) -> dict[str, str]:
    return {check.name: check.verdict for check in checks}


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_a_sound_model_keeps_the_contract(family: str) -> None:
    """Every shape of model passes every clause, and each clause was really tried."""
    checks = verify(model(family))
    assert "differs" not in verdicts(checks).values()
    tried = {check.name for check in checks if check.verdict == "same"}
    assert {"kernel sdpa = reference", "kernel online = reference", "kernel flex = reference"} <= tried
    assert {"padded in a batch = alone", "packed = separate", "saved and loaded = before"} <= tried
    assert "here = in transformers" in tried
    assert ("cached = uncached" in tried) == (family != "bert")


def test_a_window_is_tried_beyond_its_edge() -> None:
    """For a model with a window, the banded kernel serves, and the ring wraps."""
    checks = verify(model(window=48), against_transformers=False)
    assert "differs" not in verdicts(checks).values()
    assert verdicts(checks)["kernel banded = reference"] == "same"


def test_bfloat16_is_judged_by_its_own_bound() -> None:
    """A bf16 model keeps the contract within the bound stated for it."""
    checks = verify(model().to(torch.bfloat16))
    assert "differs" not in verdicts(checks).values()
    assert {check.bound for check in checks if check.bound} == {5e-2}


def break_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = kernels.online.attend
    monkeypatch.setattr(kernels.online, "attend", lambda *inputs: sound(*inputs) * 1.001)


def break_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Cache.queries

    def late(self: Cache, T: int, valid: Tensor | None, prefix: Tensor | None) -> Tokens:
        tokens = sound(self, T, valid, prefix)
        return Tokens(T, device=self.device, start=self.length + 1) if self.length else tokens

    monkeypatch.setattr(Cache, "queries", late)


def break_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.parts.masks import Valid

    monkeypatch.setattr(Valid, "rule", lambda self, q, k: torch.ones_like(q.position + k.position, dtype=torch.bool))


def break_packing(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.model import transformer

    sound = transformer.tokens_of
    monkeypatch.setattr(transformer, "tokens_of", lambda ids, valid, documents, *rest: sound(ids, valid, None, *rest))


def break_saving(monkeypatch: pytest.MonkeyPatch) -> None:
    sound = Transformer.state_dict

    def rounded(self: Transformer) -> dict[str, Tensor]:
        return {name: tensor.bfloat16().float() for name, tensor in sound(self).items()}

    monkeypatch.setattr(Transformer, "state_dict", rounded)


@pytest.mark.parametrize(
    ("sabotage", "clause"),
    [
        (break_kernel, "kernel online = reference"),
        (break_cache, "cached = uncached"),
        (break_padding, "padded in a batch = alone"),
        (break_packing, "packed = separate"),
        (break_saving, "saved and loaded = before"),
    ],
)
def test_each_breach_is_found(
    sabotage: Callable[[pytest.MonkeyPatch], None], clause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No check passes whatever happens: with one thing broken, the clause that is about it says "differs"."""
    sabotage(monkeypatch)
    assert verdicts(verify(model(), against_transformers=False))[clause] == "differs"


def test_nan_differs() -> None:
    """A model that answers NaN is not the same as anything."""
    net = model()
    with torch.no_grad():
        net.decoder.norm.weight.fill_(float("nan"))  # type: ignore[union-attr]
    assert set(verdicts(verify(net, against_transformers=False)).values()) <= {"differs", "skipped"}


def test_training_mode_is_given_back() -> None:
    """The model is judged without dropout and returned as it was."""
    net = model().train()
    verify(net, against_transformers=False)
    assert net.training


def test_no_family_is_no_failure() -> None:
    """What no family's format can say is skipped for transformers, and still saved and loaded."""
    described = families.llama("tiny")
    norm = spec.Norm(kind="layer", bias=True)
    block = described.decoder.pattern[0]
    block = block.replace(branches=tuple(branch.replace(norm=norm, placement="output") for branch in block.branches))
    odd = build(described.replace(decoder=described.decoder.replace(pattern=(block,), norm=norm)), seed=0)
    found = verdicts(verify(odd))
    assert found["here = in transformers"] == "skipped"
    assert found["saved and loaded = before"] == "same"
