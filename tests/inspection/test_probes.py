"""Probes: they read what is there, and do not read what is not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import families
from anyformer.errors import InputError
from anyformer.inspection.probes import features, probe

DRAW = torch.Generator().manual_seed(1)
X = torch.randn(600, 12, generator=DRAW) * 5 + 3


def test_what_is_linear_is_read_and_what_is_random_is_not() -> None:
    """Classes that a hyperplane divides; classes drawn by a coin."""
    labels = (X @ torch.randn(12, generator=DRAW) > 3).long()
    found = probe(X, labels)
    assert found.score > 0.9 > found.baseline and found.examples == (450, 150) and found.control is None
    coins = torch.randint(0, 2, (600,), generator=DRAW)
    assert 0.35 < probe(X, coins).score < 0.65
    assert probe(X, (coins > 5).long() + (torch.arange(600) < 540)).baseline > 0.8


def test_the_closed_form_is_least_squares() -> None:
    """Without a penalty, on numbers: torch's own solution; all of a linear map is explained."""
    wanted = X @ torch.randn(12, 3, generator=DRAW) + 7
    found = probe(X, wanted, penalty=0.0)
    ones = torch.cat((X, torch.ones(600, 1)), 1).double()
    assert torch.allclose(found.weight, torch.linalg.lstsq(ones, wanted.double()).solution, atol=1e-4)
    assert found.score > 0.9999 and torch.allclose(found(X), wanted.double(), atol=1e-3)
    assert probe(X, torch.randn(600, generator=DRAW)).score < 0.1


def test_groups_are_held_out_whole() -> None:
    """Examples that are copies of one another within a group: a probe that had seen some would know the others."""
    each = torch.randn(60, 80, generator=DRAW)
    copies, labels = each.repeat_interleave(10, 0), torch.randint(0, 2, (60,), generator=DRAW).repeat_interleave(10)
    groups = torch.arange(60).repeat_interleave(10)
    assert probe(copies, labels, penalty=1e-3).score > 0.95
    assert probe(copies, labels, penalty=1e-3, groups=groups).score < 0.8


def test_the_control_task_tells_memory_from_reading() -> None:
    """Features that only say which type a token is: any labels of types are learnt by heart, drawn ones as well."""
    types = torch.randint(0, 20, (600,), generator=DRAW)
    names = torch.eye(20)[types]
    found = probe(names, types % 2, types=types)
    assert found.score > 0.95 and found.control is not None and found.control > 0.95
    sign = X[:, :1].repeat(1, 4)
    read = probe(sign, (X[:, 0] > 3).long(), types=types)
    assert read.score > 0.95 and read.selectivity is not None and read.selectivity > 0.25


def test_features_of_a_model_are_its_streams_without_padding() -> None:
    """Batch by batch, row by row; of both stacks where there are two."""
    model = af.build(families.named("llama")("tiny"), seed=0).eval()
    ids = torch.randint(5, 200, (4, 12), generator=DRAW)
    valid = torch.ones(4, 12, dtype=torch.bool)
    valid[1, 8:] = False
    batches: list[dict[str, Any]] = [{"tokens": ids, "valid": valid}, {"tokens": ids.flip(1)}]
    found = features(model, batches, "decoder.layers.*.residual_after")
    assert [value.shape for value in found.values()] == [(44 + 48, 128)] * 2
    with torch.no_grad(), af.trace(model, "decoder.layers.1.residual_after") as t:
        model(ids[1:2, :8])
    last = found["decoder.layers.1.residual_after"]
    assert torch.allclose(last[12:20], t["decoder.layers.1.residual_after"][0], atol=1e-5)
    t5 = af.build(families.named("t5")("tiny"), seed=0).eval()
    both = features(t5, [{"tokens": ids[:, :3], "source": ids}])
    assert {len(value) for site, value in both.items() if site.startswith("encoder")} == {48}
    assert {len(value) for site, value in both.items() if site.startswith("decoder")} == {12}
    with pytest.raises(InputError, match="holds no row of numbers for each token"):
        features(model, batches, "decoder.layers.0.attention.weights")
    with pytest.raises(InputError, match="there are no batches"):
        features(model, [])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"features": X[0]}, r"must be \[N, D\]"),
        ({"features": X[:0], "labels": torch.zeros(0)}, "at least one example"),
        ({"labels": torch.zeros(7)}, "600 examples, but 7 labels"),
        ({"groups": torch.zeros(7)}, "600 examples, but 7 groups"),
        ({"features": X / 0}, "some are NaN or infinite"),
        ({"held_out": 1.0}, "between 0 and 1"),
        ({"groups": torch.zeros(600)}, "two examples"),
        ({"labels": torch.zeros(600, dtype=torch.long)}, "all labels are the same"),
        ({"labels": torch.full((600,), -1)}, "from 0 on"),
    ],
)
def test_what_no_probe_can_be_fitted_to_says_so(given: dict[str, Any], said: str) -> None:
    """In one sentence."""
    with pytest.raises(InputError, match=said):
        probe(**({"features": X, "labels": (X[:, 0] > 3).long()} | given))
