"""What the tests of comparisons share: a small text, a small recipe, and one comparison that was carried out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from anyformer.comparing import Comparison

Recipes = Callable[..., dict[str, Any]]
#: What the shared comparison varies, and over how many seeds.
VARY, SEEDS = ["position=rotary,alibi"], 2


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipes:
    """A recipe of three short steps, without a directory; `training` keys by name."""
    folder = tmp_path_factory.mktemp("texts")
    for index in range(4):
        words = random.Random(index).choices(["to", "be", "or", "not", "that", "is", "the", "question"], k=300)
        (folder / f"{index}.txt").write_text("\n".join(words))
    norm = {"kind": "rms"}
    attention = {"kind": "attention", "heads": 2, "kv_heads": 2, "head_dim": 4, "visibility": "causal"}
    feed_forward = {"kind": "feed_forward", "hidden": 24, "activation": "silu", "gated": True}
    branches = [
        {"mixer": {**attention, "position": {"kind": "rotary"}}, "norm": norm},
        {"mixer": feed_forward, "norm": norm},
    ]
    stack = {"dim": 8, "depth": 2, "pattern": [{"branches": branches}], "norm": norm}

    def make(**training: Any) -> dict[str, Any]:
        settings = {"steps": 3, "batch_tokens": 64, "sequence_length": 32, "learning_rate": 1e-2, **training}
        return {
            "model": {"spec": {"decoder": stack, "head": {"kind": "language_model", "tied": True}}},
            "data": {"train": str(folder), "held_out": 0.1},
            "training": {"checkpoint_every": 1, "validate_every": 1, "validate_tokens": 64, **settings},
        }

    return make


@pytest.fixture(scope="session")
def compared(recipe: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Rotary positions and ALiBi over two seeds."""
    from anyformer.comparing import compare

    return compare(recipe(), VARY, directory=tmp_path_factory.mktemp("out") / "it", seeds=SEEDS, progress=False)
