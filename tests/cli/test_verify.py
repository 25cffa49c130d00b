"""anyformer verify reports the contract's checks, and fails where one of them does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anyformer import inspection
from anyformer.inspection import Check


def test_a_sound_model_passes(anyformer: Callable, talker: Path) -> None:
    """A model that keeps the contract leaves with 0, and every line of it is shown."""
    ran = anyformer("verify", talker, "--no-transformers")
    assert ran.code == 0
    assert "cached = uncached" in ran.out and "differs" not in ran.out and "transformers" not in ran.out


def test_a_difference_fails(anyformer: Callable, talker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that differs is shown with its figures, and the exit code is 1; skipped ones do not fail."""
    checks = [
        Check("cached = uncached", 0.5, 1e-5, "differs", "worst at 3"),
        Check("kernel flex = reference", None, None, "skipped", "not here"),
    ]
    asked: dict = {}

    def verify(model: object, *, progress: Callable[[str], None], **more: object) -> list[Check]:
        asked.update(more)
        progress("cached = uncached")
        return checks

    monkeypatch.setattr(inspection, "verify", verify)
    ran = anyformer("verify", talker, "--seed", 7)
    assert ran.code == 1
    assert asked == {"against_transformers": True, "seed": 7}
    assert [word in ran.out for word in ("5.0e-01", "1.0e-05", "differs", "worst at 3", "skipped", "not here")] == [
        True
    ] * 6
    said = json.loads(anyformer("verify", talker, "--json").out)
    assert said["checks"][0] == {
        "name": "cached = uncached",
        "difference": 0.5,
        "bound": 1e-5,
        "verdict": "differs",
        "note": "worst at 3",
    }
    checks.pop(0)
    assert anyformer("verify", talker).code == 0
