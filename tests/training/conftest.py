"""What the tests of training share: a small text, a small model, a recipe of both."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = ("the", "a", "king", "queen", "rook", "takes", "moves", "to", "check", "mate", "pawn", "knight", "and", "wins")


def sentences(count: int, seed: int) -> str:
    """Lines that a small model can learn something from."""
    chance = random.Random(seed)
    return "".join(" ".join(chance.choices(WORDS, k=8)) + ".\n" for _ in range(count))


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a few documents of different lengths."""
    folder = tmp_path_factory.mktemp("texts")
    for index, count in enumerate((40, 3, 90, 1, 25, 60)):
        (folder / f"{index}.txt").write_text(sentences(count, index))
    return folder


def small_spec(**decoder: Any) -> dict[str, Any]:
    """Two layers of today's recipe, 16 wide, as the table of a recipe's model.spec."""
    norm = {"kind": "rms"}
    attention = {"kind": "attention", "heads": 4, "kv_heads": 2, "head_dim": 4, "visibility": "causal"}
    attention["position"] = {"kind": "rotary"}
    feed_forward = {"kind": "feed_forward", "hidden": 24, "activation": "silu", "gated": True}
    branches = [{"mixer": attention, "norm": norm}, {"mixer": feed_forward, "norm": norm}]
    stack = {"dim": 16, "depth": 2, "pattern": [{"branches": branches}], "norm": norm, **decoder}
    return {"decoder": stack, "head": {"kind": "language_model", "tied": True}}


@pytest.fixture(scope="session")
def small() -> Callable[..., dict[str, Any]]:
    """`small_spec`."""
    return small_spec


Recipes = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(texts: Path, tmp_path: Path) -> Recipes:
    """A recipe of eight steps that takes a second; `training` keys by name."""

    def make(directory: str = "run", **training: Any) -> dict[str, Any]:
        steps = {} if {"tokens", "flops", "minutes"} & set(training) else {"steps": 8}
        defaults = {"batch_tokens": 256, "sequence_length": 32, "learning_rate": 1e-2, "checkpoint_every": 3}
        return {
            "run": {"directory": str(tmp_path / directory), "seed": 5},
            "model": {"spec": small_spec()},
            "data": {"train": str(texts)},
            "training": {**steps, **defaults, **training},
        }

    return make
