"""Every experiment runs, judges by its numbers alone, and says of the committed numbers what was committed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anyformer import experiments

RESULTS = Path(__file__).parents[2] / "docs/experiments"
COMMITTED = sorted(path.stem for path in RESULTS.glob("*.json"))


@pytest.mark.parametrize("name", experiments.names())
def test_says_what_is_claimed_by_whom_and_what_would_refute_it(name: str) -> None:
    """A claim without a source, or that nothing could refute, is none."""
    experiment = experiments.experiment(name)
    assert experiment.name == name
    assert experiment.claim.endswith(".") and experiment.refuted_by
    assert any(year in experiment.source for year in map(str, range(1950, 2027)))


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_numbers_are_judged_as_committed(name: str) -> None:
    """A verdict is computed from the numbers, never written by hand; and so is the picture."""
    experiment = experiments.experiment(name)
    result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    verdict = experiment.judge(result["numbers"])
    assert (verdict.word, verdict.because) == (result["verdict"], result["because"])
    assert (result["claim"], result["source"]) == (experiment.claim, experiment.source)
    assert result["scale"] == 1, "what is committed was run at the default scale"
    assert b"<svg" in experiments.picture(experiment, result["numbers"])
    assert (RESULTS / f"{name}.svg").exists()
