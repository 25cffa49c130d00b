"""Comparisons carried out: what they come to, that they go on after a kill, and what they refuse."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anyformer.comparing import Comparison, compare
from anyformer.comparing.comparison import _disturbed
from anyformer.comparing.statistics import difference
from anyformer.errors import ExperimentError, TrainingError
from anyformer.planning import count
from anyformer.planning.reading import read_spec
from anyformer.training import read_metrics

Recipes = Callable[..., dict[str, Any]]
VARY, SEEDS = ["position=rotary,alibi"], 2


def test_a_comparison_is_what_its_runs_came_to(compared: Comparison) -> None:
    """Losses are those of the runs' last validations, paired by seed; differences are worked out from them."""
    base, alibi = compared.rows
    for row in compared.rows:
        for run, loss in zip(row.runs, row.losses):
            assert read_metrics(run.directory / "metrics.jsonl")[-1]["validation_loss"] == loss
            assert count(read_spec(run.directory)) == row.parameters
            assert list(run.held_out.mean) == [
                each["validation_loss"] for each in read_metrics(run.directory / "metrics.jsonl")
            ]
    assert alibi.difference == difference([loss or 0.0 for loss in alibi.losses], [loss or 0.0 for loss in base.losses])
    assert base.difference is None and base.losses != alibi.losses
    assert compared["position=alibi"] is alibi


def test_seeds_are_paired(compared: Comparison) -> None:
    """Runs of one seed see the same data in the same order: only what is varied sets their recipes apart."""
    for one, other in zip(*(row.runs for row in compared.rows)):
        ours, theirs = (json.loads((run.directory / "run.json").read_text())["recipe"] for run in (one, other))
        assert ours["run"]["seed"] == theirs["run"]["seed"] == one.seed
        assert ours["training"] == theirs["training"] and ours["data"] == theirs["data"]


def test_runs_share_one_tokenisation(compared: Comparison) -> None:
    """The shards of all runs are one file on the disk."""
    held = [run.directory / "data" for row in compared.rows for run in row.runs]
    files = [[path for path in sorted(each.rglob("*")) if path.is_file()] for each in held]
    assert files[0]
    for others in files[1:]:
        assert all(one.samefile(other) for one, other in zip(files[0], others, strict=True))


def test_the_answer_is_written_whole(compared: Comparison) -> None:
    """comparison.json holds what is returned; report.html stands for itself and names every variant."""
    data = json.loads((compared.directory / "comparison.json").read_text())
    assert data == json.loads(json.dumps(compared.to_data()))
    page = (compared.directory / "report.html").read_text()
    assert "position=alibi" in page and "<svg" in page and "http://" not in page and "src=" not in page


def test_a_machine_that_was_not_quiet_is_said_to(compared: Comparison) -> None:
    """Where the time was equal, and one run saw far more tokens than another of the same model; never elsewhere."""
    base, alibi = compared.rows
    fast = replace(base.runs[0], tokens=2 * base.runs[1].tokens)
    (said,) = _disturbed([replace(base, runs=(fast, base.runs[1])), alibi], "time")
    assert f"runs of base saw from {base.runs[1].tokens:,} to {fast.tokens:,} tokens" in said
    assert not list(_disturbed(compared.rows, "time"))
    assert not list(_disturbed([replace(base, runs=(fast, base.runs[1]))], "steps"))


def test_asked_again_nothing_is_trained(compared: Comparison, recipe: Recipes) -> None:
    """Finished runs stay as they are, to the byte."""
    before = {path: path.stat().st_mtime_ns for path in compared.directory.glob("runs/*/*")}
    again = compare(recipe(), VARY, directory=compared.directory, seeds=SEEDS, progress=False)
    assert again.to_data() == compared.to_data()
    assert {path: path.stat().st_mtime_ns for path in compared.directory.glob("runs/*/*")} == before


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"seeds": 3}, "seeds was 2 and is 3"),
        ({"equal": "parameters"}, "equal was null and is"),
        ({"vary": ["position=none"]}, "vary was"),
        ({"overrides": ["training.steps=4"]}, "its base is another"),
    ],
)
def test_another_question_is_refused(compared: Comparison, recipe: Recipes, asked: dict[str, Any], says: str) -> None:
    """The directory of one answer takes no other's runs."""
    question = {"vary": VARY, "seeds": SEEDS, **asked}
    with pytest.raises(ExperimentError, match=f"answer another question .*{says}"):
        compare(recipe(), directory=compared.directory, progress=False, **question)


def test_killed_it_goes_on_to_the_same_answer(compared: Comparison, recipe: Recipes, tmp_path: Path) -> None:
    """`kill -9` while runs are under way, two at a time: asked again, what was finished is kept, what was stopped goes
    on, and the losses are those of a comparison that nobody stopped, to the bit."""
    question = {"base": recipe(), "vary": VARY, "directory": str(tmp_path / "out"), "seeds": SEEDS, "workers": 2}
    ask = "import json, sys; from anyformer.comparing import compare; compare(**json.load(sys.stdin), progress=False)"
    with subprocess.Popen([sys.executable, "-c", ask], stdin=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(question).encode())
        process.stdin.close()
        while process.poll() is None and not any((tmp_path / "out").glob("runs/*/checkpoints/step-*")):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    _wait_until_quiet(tmp_path / "out")
    again = compare(recipe(), VARY, directory=tmp_path / "out", seeds=SEEDS, progress=False)
    assert [row.losses for row in again.rows] == [row.losses for row in compared.rows]


def _wait_until_quiet(directory: Path) -> None:
    """Workers end with the process that waits for them; none writes any more."""
    before: Any = None
    while (now := {path: path.stat().st_mtime_ns for path in directory.rglob("*.jsonl")}) != before:
        before = now
        time.sleep(0.5)


def test_a_run_that_diverges_is_said_to(recipe: Recipes, tmp_path: Path) -> None:
    """A learning rate beyond all bounds: its row has no mean and no difference, the others have theirs."""
    base = recipe(skip_limit=2, clip=0.0, schedule="constant", steps=8, precision="float32")
    result = compare(base, ["learning_rate=1e38"], directory=tmp_path / "out", seeds=1, progress=False)
    row = result.rows[1]
    assert row.losses == (None,) and row.sample is None and row.difference is None
    assert row.verdict == "diverged at seed 0"
    assert result.rows[0].sample is not None
    assert "diverged" in (tmp_path / "out" / "report.html").read_text()


def test_parameters_are_held_equal_in_what_is_trained(recipe: Recipes, tmp_path: Path) -> None:
    """The built models have the same number of parameters within a hundredth, and the row says what was adjusted; one
    seed tells nothing of the noise, and a note says so."""
    result = compare(
        recipe(steps=1),
        ["feed_forward=relu"],
        directory=tmp_path / "out",
        seeds=1,
        equal="parameters",
        progress=False,
    )
    base, other = (count(read_spec(row.runs[0].directory)) for row in result.rows)
    assert abs(other / base - 1) <= 0.01
    assert result.rows[1].adjusted == "feed-forward 24 → 36"
    assert any("One seed" in note for note in result.notes)
    assert result.rows[1].difference is not None and result.rows[1].difference.larger_than_noise is None


def test_tokens_that_differ_are_compared_by_the_byte(recipe: Recipes, tmp_path: Path) -> None:
    """A loss per token says little of another tokenizer's tokens."""
    result = compare(
        recipe(steps=1), {"tokenizer.train.vocabulary": [264]}, directory=tmp_path / "out", seeds=1, progress=False
    )
    assert result.measure == "bits_per_byte" and any("bits per byte" in note for note in result.notes)
    assert result.rows[0].losses[0] == result.rows[0].runs[0].measured["bits_per_byte"]


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"seeds": 0}, "0 seeds make no run"),
        ({"equal": "luck"}, "there are parameters, flops, time, steps"),
        ({"equal": "time"}, "set training.minutes"),
        ({"equal": "steps", "vary": ["steps=2"]}, "for equal steps"),
        ({"confidence": 95}, "between 0 and 1"),
        ({"vary": ["hidden=100"], "equal": "parameters"}, "is the base again"),
        ({"overrides": ["training.stepz=3"]}, "no key 'training.stepz'"),
    ],
)
def test_what_cannot_be_asked_leaves_nothing(recipe: Recipes, tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    """One sentence, and no directory that a corrected question would find taken."""
    with pytest.raises((ExperimentError, TrainingError, ValueError), match=says):
        compare(recipe(), **{"vary": ["position=alibi"], "directory": tmp_path / "out", "progress": False, **asked})
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_left_alone(recipe: Recipes, tmp_path: Path) -> None:
    """Files that are no comparison's stay where they are."""
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ExperimentError, match="holds something else"):
        compare(recipe(), VARY, directory=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
