"""Runs are followed through other people's libraries, which can neither change nor stop them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from anyformer.errors import TrainingError
from anyformer.training import read_metrics, read_recipe, train
from anyformer.training.trainer import Trainer
from anyformer.training.watching import trackers
from anyformer.training.watching.trackers import cut_back, following, identity, named, trackers_of

Recipes = Callable[..., dict[str, Any]]


def watched_by(recipe: dict[str, Any], *names: str) -> dict[str, Any]:
    return {**recipe, "run": {**recipe["run"], "watch": list(names)}}


def events(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, values by tag) of all event files as they stand there, through tensorboard's own reader."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    found = []
    for path in sorted((directory / "tensorboard").iterdir()):
        for event in loader.LegacyEventFileLoader(str(path)).Load():
            if event.HasField("summary"):
                found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}))
    return found


def expected(directory: Path) -> list[tuple[int, dict[str, float]]]:
    return [
        (row["step"], {tag: pytest.approx(value, rel=1e-6) for tag, value in named(row).items()})
        for row in read_metrics(directory / "metrics.jsonl")
    ]


def test_tensorboard_reads_what_the_metrics_say(recipe: Recipes) -> None:
    """Every row and number, by its tag, also through the reader that TensorBoard itself uses."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    directory = train(watched_by(recipe(validate_every=4), "tensorboard"), progress=False).directory
    assert events(directory) == expected(directory)
    board = accumulator.EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("validation/bits_per_byte")] == [4, 8]
    losses = [row["loss"] for row in read_metrics(directory / "metrics.jsonl")]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(losses)


def test_after_a_kill_no_step_stands_twice(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed behind a checkpoint and in the middle of an event, twice: what is on disk is one run's, step by step."""
    pytest.importorskip("tensorboard")
    made = watched_by(recipe(), "tensorboard")
    directory = Path(made["run"]["directory"])
    real = Trainer.update
    for last in (5, 7):

        def dies(self: Trainer, index: int, rate: float, last: int = last) -> Any:
            if index == last:
                raise MemoryError
            return real(self, index, rate)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", dies)
            with pytest.raises(MemoryError):
                train(resume=directory, progress=False) if directory.exists() else train(made, progress=False)
        newest = sorted((directory / "tensorboard").iterdir())[-1]
        newest.write_bytes(newest.read_bytes()[:-7])
    train(resume=directory, progress=False)
    assert [step for step, _ in events(directory)] == list(range(1, 9))
    assert events(directory) == expected(directory)


def test_an_event_file_is_cut_at_any_byte(recipe: Recipes, tmp_path: Path) -> None:
    """Wherever it is torn, whole events up to the step are left, and nothing behind them."""
    pytest.importorskip("tensorboard")
    directory = train(watched_by(recipe(), "tensorboard"), progress=False).directory
    (whole,) = [path.read_bytes() for path in (directory / "tensorboard").iterdir()]
    folder = tmp_path / "cut" / "tensorboard"
    folder.mkdir(parents=True)
    path = folder / "events.out.tfevents.1"
    for size in range(0, len(whole) + 1, 97):
        path.write_bytes(whole[:size])
        cut_back(path, 5)
        steps = [step for step, _ in events(folder.parent)]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) <= 5
    assert len(steps) == 5


def test_numbers_have_names_and_gaps_none() -> None:
    """A loss that was not finite is no number to plot."""
    row = {"step": 3, "tokens": 96, "loss": None, "gradient_norm": 0.5, "validation_bits_per_byte": 2}
    assert named(row) == {"progress/tokens": 96.0, "train/gradient_norm": 0.5, "validation/bits_per_byte": 2.0}


class Stand:
    """Stands in for wandb and trackio: takes down what it is told."""

    def __init__(self, breaks_at: int = 10**9) -> None:
        self.opened: list[dict[str, Any]] = []
        self.rows: dict[int, dict[str, float]] = {}
        self.finished = 0
        self.breaks_at = breaks_at

    def init(self, project: str, **how: Any) -> Stand:
        print("* a library that speaks on standard output")
        self.opened.append({"project": project, **how})
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if step >= self.breaks_at:
            raise ConnectionError("the network is gone")
        self.rows[step] = values

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Stand], None]]:
    """Puts a stand-in in the place of a library."""

    def install(name: str, stand: Stand) -> None:
        module = ModuleType(name)
        module.__spec__ = SimpleNamespace(name=name)  # type: ignore[assignment]
        own = {"Error": RuntimeError, "Settings": SimpleNamespace, "login": lambda prompt: False}
        for attribute, value in {"init": stand.init, "finish": stand.finish, **own}.items():
            setattr(module, attribute, value)
        monkeypatch.setitem(sys.modules, name, module)

    yield install


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_each_library_is_told_every_row(
    name: str, recipe: Recipes, install: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its step; with the recipe; under a name that is the run's own, and the same after a stop; finished at the end.
    (Against a stand-in of init, log and finish.)"""
    stand = Stand()
    install(name, stand)
    directory = train(watched_by(recipe(validate_every=4), name), progress=False).directory
    assert stand.rows == {row["step"]: named(row) for row in read_metrics(directory / "metrics.jsonl")}
    [opened] = stand.opened
    assert opened["project"] == "anyformer" and opened["resume"] == "allow" and stand.finished == 1
    assert opened["config"]["training"]["steps"] == 8 and opened["name"].startswith("run")
    assert identity(directory)[:6] in (opened["name"] if name == "trackio" else opened["id"])
    if name == "wandb":
        assert opened["mode"] == "offline" and opened["dir"] == str(directory)
    else:
        assert capsys.readouterr().out == ""


def test_a_library_that_breaks_stops_nothing(recipe: Recipes, install: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said once, and the run ends as it would have, to the bit."""
    install("trackio", Stand(breaks_at=3))
    alone = train(watched_by(recipe("alone")), progress=False).directory
    result = train(watched_by(recipe(), "trackio"))
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("trackio does not follow the run any more (ConnectionError: the network is gone)") == 1
    assert result.finished
    assert (result.directory / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()


def test_a_library_that_does_not_open_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one that fails when it is closed."""
    said: list[str] = []

    class Broken:
        def __init__(self, *_: Any) -> None: ...

        def write(self, row: Any) -> None: ...

        def close(self) -> None:
            raise OSError("not there")

    def does_not_open(*_: Any) -> Any:
        raise OSError("no")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", does_not_open)
    monkeypatch.setitem(trackers.TRACKERS, "trackio", Broken)
    with following(("wandb", "trackio"), tmp_path, None, 0, said.append) as tell:  # type: ignore[arg-type]
        tell({"step": 1})
    assert [line.split()[0] for line in said] == ["wandb", "trackio"]


def test_what_is_missing_is_said_before_the_run_begins(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that the recipe names, with how to get it, leaving nothing behind; TensorBoard, which nobody named, is
    simply not there."""
    monkeypatch.setattr(trackers, "_is_installed", lambda name: False)
    made = watched_by(recipe(), "wandb")
    with pytest.raises(TrainingError, match=r"run.watch names wandb, which is not installed: pip install 'anyformer"):
        train(made, progress=False)
    assert not Path(made["run"]["directory"]).exists()
    assert trackers_of(read_recipe(recipe())) == ()
    with pytest.raises(TrainingError, match="there is no 'wandbe' to watch a run with; there are tensorboard, wandb"):
        read_recipe(watched_by(recipe(), "wandbe"))
