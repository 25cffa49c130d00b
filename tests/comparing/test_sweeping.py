"""A sweep: each run spends its budget, and what it leaves is what laws are fitted to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anyformer.errors import ExperimentError
from anyformer.laws import read_runs

if TYPE_CHECKING:
    from anyformer.comparing import Sweep

Recipes = Callable[..., dict[str, Any]]
BUDGET = 5e8


@pytest.fixture(scope="module")
def swept(recipe: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Two sizes of one small budget."""
    from anyformer.comparing import sweep

    base = recipe(batch_tokens=2048, sequence_length=256, validate_every=1000, checkpoint_every=1000)
    return sweep(base, [BUDGET], directory=tmp_path_factory.mktemp("out") / "it", sizes=2, span=1.4, progress=False)


def test_every_run_spends_the_budget(swept: Sweep) -> None:
    """6·N·D is the budget within a step's tokens, and the sizes are a factor apart."""
    small, large = swept.swept
    for each in swept.swept:
        assert abs(6 * each.parameters * each.run.tokens - BUDGET) <= 6 * each.parameters * 2048
        assert each.loss is not None
    assert large.parameters / small.parameters == pytest.approx(1.4, rel=0.03)
    assert swept.law is None and not swept.curves.parabolas


def test_a_law_is_fitted_to_its_directory(swept: Sweep) -> None:
    """What `plan --fit` reads of the directory are the sweep's own points."""
    found = read_runs([swept.directory])
    order = np.argsort(found.parameters)
    assert found.parameters[order].tolist() == [each.parameters for each in swept.swept]
    assert found.tokens[order].tolist() == [each.run.tokens for each in swept.swept]
    assert found.losses[order].tolist() == [each.loss for each in swept.swept]


def test_the_answer_is_written_whole(swept: Sweep) -> None:
    """sweep.json holds every run; the page stands for itself."""
    data = json.loads((swept.directory / "sweep.json").read_text())
    assert [run["parameters"] for run in data["runs"]] == [each.parameters for each in swept.swept]
    page = (swept.directory / "report.html").read_text()
    assert "<svg" in page and "src=" not in page
    assert any("read the text" in note for note in swept.notes)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"budgets": []}, "there is no budget"),
        ({"budgets": [-1e9]}, "trains nothing"),
        ({"budgets": [float("nan")]}, "trains nothing"),
        ({"budgets": [1e9, 1e9]}, "given twice"),
        ({"sizes": 0}, "make no run"),
        ({"span": 0.5}, "no ladder"),
        ({"overrides": ["training.batch_tokens=1048576"]}, "fewer than 20 steps of training.batch_tokens=1,048,576"),
        ({"budgets": [1e3]}, "no width of this architecture"),
    ],
)
def test_what_cannot_be_swept_leaves_nothing(recipe: Recipes, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    """One sentence says what to change, and the directory stays free."""
    from anyformer.comparing import sweep

    with pytest.raises(ExperimentError, match=says):
        sweep(recipe(), **{"budgets": [BUDGET], "sizes": 1, "directory": tmp_path / "out", "progress": False, **asked})
    assert not (tmp_path / "out").exists()
