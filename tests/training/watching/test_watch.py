"""Watching a run changes nothing of it, and leaves samples and a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anyformer.errors import TrainingError
from anyformer.training import read_metrics, train
from anyformer.training.trainer import Trainer, Update
from anyformer.training.watching import watch

Recipes = Callable[..., dict[str, Any]]


def sampled(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]


def with_samples(recipe: dict[str, Any], **run: Any) -> dict[str, Any]:
    return {**recipe, "run": {**recipe["run"], **run}}


def stopped_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """A run is killed in step `step`."""
    real = Trainer.update

    def dies(self: Trainer, index: int, rate: float) -> Update:
        if index + 1 == step:
            raise MemoryError
        return real(self, index, rate)

    patch.setattr(Trainer, "update", dies)


def test_a_watched_run_is_the_same_to_the_bit(recipe: Recipes) -> None:
    """Dropout included, which draws random numbers in every step: with samples at every step and trackers, or with
    neither."""
    made = recipe(validate_every=4)
    made["model"]["spec"]["decoder"]["pattern"][0]["branches"][0]["dropout"] = 0.2
    seen = train(with_samples({**made}, sample_every=1), progress=False).directory
    unseen = train(with_samples(made, samples=0, watch=[], directory=f"{seen}-unseen"), progress=False).directory
    assert [row["step"] for row in sampled(seen)] == list(range(1, 9)) and not (unseen / "samples.jsonl").exists()
    assert (seen / "model.safetensors").read_bytes() == (unseen / "model.safetensors").read_bytes()
    rows = [[{**row, "elapsed": 0} for row in read_metrics(place / "metrics.jsonl")] for place in (seen, unseen)]
    assert rows[0] == rows[1]


def test_samples_are_cut_back_and_come_out_the_same(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed and resumed has the samples of one that was not, each step once."""
    whole = train(with_samples(recipe("whole"), sample_every=2), progress=False).directory
    made = with_samples(recipe("killed"), sample_every=2)
    with monkeypatch.context() as patch:
        stopped_at(6, patch)
        with pytest.raises(MemoryError):
            train(made, progress=False)
    directory = Path(made["run"]["directory"])
    assert [row["step"] for row in sampled(directory)] == [2, 4]
    with (directory / "samples.jsonl").open("a") as file:
        file.write('{"step": 6, "sam')
    train(resume=directory, progress=False)
    assert sampled(directory) == sampled(whole) and [row["step"] for row in sampled(whole)] == [2, 4, 6, 8]


def test_a_report_is_left_however_a_run_ends(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its end, killed by an error, stopped for losses that are no numbers; one that cannot be written is said."""
    assert "finished · 8 steps" in (train(recipe("a"), progress=False).directory / "report.html").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", lambda *_: Update(float("nan"), float("nan"), True))
        made = recipe("b", skip_limit=2)
        with pytest.raises(TrainingError, match="not finite for 2 steps"):
            train(made, progress=False)
        page = (Path(made["run"]["directory"]) / "report.html").read_text()
        assert "steps skipped" in page and "step 2 of 8" in page
    with monkeypatch.context() as patch:

        def full(directory: Path) -> Path:
            raise OSError("no space left")

        patch.setattr(watch, "write_report", full)
        assert train(recipe("c")).finished
    assert "there is no report of the run (OSError: no space left)" in " ".join(capsys.readouterr().err.split())


def test_samples_that_fail_stop_nothing(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once."""

    def fails(*_: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(watch, "take", fails)
    assert train(with_samples(recipe(), sample_every=1)).finished
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("no more samples are taken (RuntimeError: out of luck)") == 1


def test_a_validation_that_is_no_number_stops_nothing(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is null in the metrics, and a gap for whoever watches."""
    monkeypatch.setattr(Trainer, "validate", lambda self: {"validation_loss": float("nan")})
    result = train(with_samples(recipe(validate_every=4), samples=0))
    rows = read_metrics(result.directory / "metrics.jsonl")
    assert result.finished and [row["step"] for row in rows if "validation_loss" in row] == [4, 8]
    assert result.validation_loss is None and rows[-1]["validation_loss"] is None
    assert "A training loss of" in (result.directory / "report.html").read_text()
