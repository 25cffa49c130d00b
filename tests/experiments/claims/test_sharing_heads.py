"""Of shared key/value heads: judged by its numbers, in every way; and caches are counted to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer.experiments import Lab
from anyformer.experiments.claims import sharing_heads
from anyformer.experiments.claims.sharing_heads import SHARED, judge


def numbers(grouped: float, seconds: float, noise: float = 0.0, planned: int = 100) -> dict:
    """Multi-head attention at a loss of 2 and 10 seconds, multi-query at 2 seconds; grouped queries lose so much."""
    losses = {"MHA": [2.0] * 3, "GQA": [2 + grouped, 2 + grouped + noise, 2 + grouped - noise], "MQA": [2.1] * 3}
    taken = {"MHA": 10.0, "GQA": seconds, "MQA": 2.0}
    return {
        name: {"losses": losses[name], "seconds": [taken[name]], "cache_bytes": 100, "planned_bytes": planned}
        for name in SHARED
    }


@pytest.mark.parametrize(
    ("numbers", "word"),
    [
        (numbers(0.001, 3.0), "holds"),
        (numbers(0.1, 3.0), "does not hold at this scale"),
        (numbers(0.001, 8.0), "does not hold at this scale"),
        (numbers(0.001, 3.0, planned=101), "does not hold at this scale"),
        (numbers(0.001, 3.0, noise=0.1), "unclear"),
    ],
)
def test_each_verdict(numbers: dict, word: str) -> None:
    """Holds as claimed; not where quality, time or bytes say otherwise; unclear where the noise is larger than what
    may be lost."""
    assert judge(numbers).word == word


def test_caches_are_planned_to_the_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of each way of sharing, in a small model; a quarter of the heads are a quarter of the bytes."""
    monkeypatch.setattr(sharing_heads, "DECODING", (32, 1, 16, 32))
    found = sharing_heads._decoded(Lab(tmp_path, scale=0.01))
    assert all(one["cache_bytes"] == one["planned_bytes"] for one in found.values())
    assert [found["MHA"]["cache_bytes"] / one["cache_bytes"] for one in found.values()] == [1, 4, 16]
