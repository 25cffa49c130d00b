"""Whole runs: what they leave, how they end, how they are resumed."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import anyformer as af
from anyformer import spec
from anyformer.data import open_corpus
from anyformer.errors import DataError, SpecError, TrainingError
from anyformer.planning import forward_flops
from anyformer.training import read_metrics, read_recipe, train
from anyformer.training import run as running
from anyformer.training.length import REHEARSED_BATCHES
from anyformer.training.trainer import Trainer

Recipes = Callable[..., dict[str, Any]]


def rows(directory: Path) -> list[dict[str, Any]]:
    """The metrics, without the times."""
    return [{**row, "elapsed": None} for row in read_metrics(directory / "metrics.jsonl")]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Metrics and weights to the bit."""
    assert rows(one) == rows(other)
    assert weights(one).keys() == weights(other).keys()
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(one).items())


@pytest.fixture
def interrupted(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Runs the recipe until step `step` and interrupts it there, as Ctrl-C would."""

    def interrupt(step: int) -> Path:
        real = Trainer.update

        def update(self: Trainer, index: int, rate: float) -> Any:
            if index + 1 == step:
                os.kill(os.getpid(), signal.SIGINT)
            return real(self, index, rate)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "update", update)
            result = train(recipe("stopped"), progress=False)
        assert not result.finished and result.step == step
        return result.directory

    return interrupt


def test_a_run_learns_and_leaves_a_checkpoint_like_any_other(recipe: Recipes) -> None:
    """The loss falls; the directory loads, has its tokenizer, and generates."""
    result = train(recipe(steps=60, validate_every=25), progress=False)
    table = read_metrics(result.directory / "metrics.jsonl")
    assert [row["step"] for row in table] == list(range(1, 61))
    assert [row["tokens"] for row in table] == list(range(256, 61 * 256, 256))
    assert table[-1]["loss"] < 0.7 * table[0]["loss"]
    assert [row["step"] for row in table if "validation_loss" in row] == [25, 50, 60]
    assert all(earlier["elapsed"] <= later["elapsed"] for earlier, later in pairwise(table))
    assert result.finished and result.step == result.steps == 60 and result.tokens == 60 * 256
    assert result.loss == table[-1]["loss"]
    assert result.validation_bits_per_byte == table[-1]["validation_bits_per_byte"] < 8
    model = af.load(result.directory)
    assert model.tokenizer is not None and model.family == "llama"
    (new,) = model.generate(["the king "], max_new_tokens=5)
    assert isinstance(new, str)
    assert (result.directory / "config.json").exists() and (result.directory / "tokenizer.json").exists()


def test_the_same_seed_gives_the_same_bits_and_another_does_not(recipe: Recipes) -> None:
    """Order, weights and everything after them follow from the seed."""
    one, same = (train(recipe(name), progress=False).directory for name in ("one", "same"))
    other = train(recipe("other"), overrides=["run.seed=6"], progress=False).directory
    assert_same_run(one, same)
    assert rows(one) != rows(other)


def test_ctrl_c_saves_and_resuming_goes_on_to_the_same_bits(
    recipe: Recipes, interrupted: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped at a step that no checkpoint was due at; what it has learned loads as a model already."""
    whole = train(recipe("whole"), progress=False).directory
    stopped = interrupted(5)
    assert len(rows(stopped)) == 5 and af.load(stopped).spec == af.load(whole).spec
    result = train(resume=stopped)
    assert result.finished and result.step == 8
    assert "resuming at step 5" in capsys.readouterr().err
    assert_same_run(whole, stopped)


def test_being_stopped_says_how_to_go_on(recipe: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    """The exact command, on the screen; a person reads it when the process is gone. A cluster may say it twice."""
    real = Trainer.update

    def update(self: Trainer, index: int, rate: float) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, index, rate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", update)
        directory = train(recipe()).directory
    shown = capsys.readouterr().err
    assert "stopped and saved at step 1" in shown
    assert f"anyformer train --resume {directory}\n" in shown


def test_a_run_that_is_part_of_more_says_how_to_go_on_with_all_of_it(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed alone, the others that were to be compared with it would be left."""
    real = Trainer.update

    def update(self: Trainer, index: int, rate: float) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return real(self, index, rate)

    monkeypatch.setattr(Trainer, "update", update)
    assert not train(recipe(), again="the same command again").finished
    shown = capsys.readouterr().err
    assert "go on with: the same command again\n" in shown and "--resume" not in shown


def test_a_second_ctrl_c_stops_at_once(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also out of a step that hangs; the handlers of the process are back afterwards."""

    def hangs(self: Trainer, index: int, rate: float) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trainer, "update", hangs)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), progress=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    recipe: Recipes, interrupted: Callable[[int], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes back further, and still ends in the same bits."""
    whole = train(recipe("whole"), progress=False).directory
    stopped = interrupted(7)
    damaged = stopped / "checkpoints" / "step-00000007" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    train(resume=stopped)
    shown = " ".join(capsys.readouterr().err.split())
    assert "step-00000007 is damaged: optimizer.safetensors" in shown and "resuming at step 6" in shown
    assert_same_run(whole, stopped)


def test_a_torn_metrics_line_and_rows_beyond_the_checkpoint_go(
    recipe: Recipes, interrupted: Callable[[int], Path]
) -> None:
    """As a kill leaves them behind."""
    whole = train(recipe("whole"), progress=False).directory
    stopped = interrupted(5)
    with (stopped / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "tokens": 1, "loss": 0.5}\n{"step": 7, "tok')
    train(resume=stopped, progress=False)
    assert_same_run(whole, stopped)


def test_a_finished_run_stays_as_it_is(recipe: Recipes) -> None:
    """Resuming it trains no further and gives the same result."""
    first = train(recipe(), progress=False)
    before = rows(first.directory), weights(first.directory)
    again = train(resume=first.directory, progress=False)
    assert again == first
    assert rows(first.directory) == before[0]
    assert all(torch.equal(tensor, weights(first.directory)[name]) for name, tensor in before[1].items())


def test_elapsed_goes_on_counting(recipe: Recipes, interrupted: Callable[[int], Path]) -> None:
    """The seconds of both sittings add up."""
    stopped = interrupted(5)
    train(resume=stopped, progress=False)
    seconds = [row["elapsed"] for row in read_metrics(stopped / "metrics.jsonl")]
    assert seconds == sorted(seconds) and seconds[0] > 0


def test_a_directory_that_holds_a_run_is_refused_with_the_command(recipe: Recipes) -> None:
    """A run is never written over; nor is a model."""
    directory = train(recipe(), progress=False).directory
    before = rows(directory)
    with pytest.raises(TrainingError, match=rf"holds a run already; .*anyformer train --resume {directory}"):
        train(recipe(), progress=False)
    assert rows(directory) == before
    (directory / "run.json").unlink()
    with pytest.raises(TrainingError, match="holds a model, which the run would replace"):
        train(recipe(), progress=False)


def test_a_file_cannot_hold_a_run(recipe: Recipes, tmp_path: Path) -> None:
    """Neither in place of the directory nor on the way to it."""
    (tmp_path / "file").write_text("mine")
    for directory in ("file", "file/run"):
        with pytest.raises(TrainingError, match=r"run.directory: .*file.* cannot hold a run"):
            train(recipe(directory), progress=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_run_that_is_going_on_is_not_resumed_beside_itself(recipe: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's resuming is refused, and changes nothing of what it ends in."""
    whole = train(recipe("whole"), progress=False).directory
    run = whole.with_name("run")
    real, refused = Trainer.update, 0

    def update(self: Trainer, index: int, rate: float) -> Any:
        nonlocal refused
        if index == 4:
            with pytest.raises(TrainingError, match=rf"{run} is being trained by another process"):
                train(resume=run, progress=False)
            refused += 1
        return real(self, index, rate)

    monkeypatch.setattr(Trainer, "update", update)
    train(recipe(), progress=False)
    assert refused == 1
    assert_same_run(whole, run)


def test_there_must_be_a_run_to_resume(tmp_path: Path, recipe: Recipes) -> None:
    """And one of the two, a recipe or a run; a resumed run keeps its recipe."""
    with pytest.raises(TrainingError, match="holds no run to resume"):
        train(resume=tmp_path)
    with pytest.raises(TrainingError, match="either a recipe"):
        train()
    with pytest.raises(TrainingError, match="either a recipe"):
        train(recipe(), resume=tmp_path)
    with pytest.raises(TrainingError, match="keeps its recipe"):
        train(resume=tmp_path, overrides=["run.seed=1"])


@pytest.mark.parametrize(
    ("override", "error", "complaint"),
    [
        ("data.train=nowhere", DataError, "nothing found at"),
        ("model.preset=llama:galactic", SpecError, "galactic"),
        ("model.spec={decoder = {dim = 8, depth = 0}}", SpecError, "depth"),
        ("model.from=nowhere", ValueError, "nowhere"),
        ("tokenizer=nowhere", ValueError, "nowhere"),
        ("training.sequence_length=16384", TrainingError, "multiple"),
    ],
)
def test_a_recipe_that_cannot_run_leaves_nothing_behind(
    recipe: Recipes, tmp_path: Path, override: str, error: type[Exception], complaint: str
) -> None:
    """What was wrong can be mended and tried again in the same directory."""
    with pytest.raises(error, match=complaint):
        train(recipe(), overrides=[override], progress=False)
    assert not (tmp_path / "run").exists()
    assert train(recipe(steps=1), progress=False).finished


@pytest.mark.parametrize(("content", "complaint"), [("", "is empty"), ("a\nb\n" * 20, "fewer than one window of 128")])
def test_too_little_text_is_an_error(recipe: Recipes, tmp_path: Path, content: str, complaint: str) -> None:
    """Nothing at all, and less than a window."""
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(DataError, match=complaint):
        train(recipe(sequence_length=128), overrides=[f"data.train={tmp_path / 'a.txt'}"], progress=False)
    assert not (tmp_path / "run").exists()


def test_one_line_of_text_has_nothing_to_hold_out(recipe: Recipes, tmp_path: Path) -> None:
    """The way out is named: other text to validate on."""
    (tmp_path / "a.txt").write_text("one line only " * 30)
    with pytest.raises(DataError, match=r"name some in data.validation"):
        train(recipe(), overrides=[f"data.train={tmp_path / 'a.txt'}"], progress=False)


def test_given_validation_text_is_used_and_nothing_else_held_out(recipe: Recipes, tmp_path: Path) -> None:
    """All of the training text is trained on."""
    (tmp_path / "held.txt").write_text("the king takes the queen.\n")
    (tmp_path / "train.txt").write_text("mate " * 400)
    overrides = [f"data.train={tmp_path / 'train.txt'}", f"data.validation={tmp_path / 'held.txt'}"]
    directory = train(recipe(steps=1), overrides=overrides, progress=False).directory
    assert open_corpus(directory / "data", "train").bytes == 2000
    assert open_corpus(directory / "data", "validation").bytes == 26


def test_tokens_and_minutes_become_steps(recipe: Recipes) -> None:
    """Tokens by division, FLOPs by the planner's count; minutes by measuring, once, for resuming to keep."""
    assert train(recipe("tokens", tokens=1000), progress=False).steps == 4
    described = read_recipe(recipe()).model.spec
    assert isinstance(described, dict)
    described["decoder"]["embeddings"] = {"vocabulary": 257}
    a_row = sum(forward_flops(spec.Transformer.from_data(described), 32).values())
    assert train(recipe("flops", flops=3.0 * 8 * a_row * 4.5), progress=False).steps == 5
    timed = train(recipe("minutes", minutes=0.01), progress=False)
    kept = json.loads((timed.directory / "run.json").read_text())["steps"]
    assert timed.finished and timed.steps == timed.step == kept >= 1
    assert train(resume=timed.directory, progress=False).steps == kept


def test_measured_minutes_train_as_the_same_number_of_steps(recipe: Recipes) -> None:
    """Measuring leaves no trace in weights, moments or order."""
    timed = train(recipe("minutes", minutes=0.01, validate_every=5), progress=False)
    counted = train(recipe("steps", steps=timed.steps, validate_every=5), progress=False)
    assert_same_run(timed.directory, counted.directory)


def test_measuring_minutes_reads_no_more_held_out_text_than_it_needs(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recipe that validates on all of a long text does not do so before its first step."""
    read: list[int] = []
    validate = Trainer.validate

    def counted(trainer: Trainer) -> dict[str, float]:
        read.append(min(trainer.settings.validate_tokens, int(trainer.held_out.sizes.sum())))
        return validate(trainer)

    monkeypatch.setattr(Trainer, "validate", counted)
    made = recipe("minutes", minutes=0.01, validate_tokens=1_000_000, validate_every=1_000_000)
    made["data"]["held_out"] = 0.5
    train(made, progress=False)
    rehearsed, validated = read
    assert rehearsed == REHEARSED_BATCHES * 256 < validated


def test_a_full_disk_ends_the_run_with_its_last_checkpoint_whole(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says how to go on; and going on ends in the same bits."""
    whole = train(recipe("whole"), progress=False).directory
    real = os.fsync

    def full(descriptor: int) -> None:
        if "step-00000006" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(TrainingError, match=r"No space left on device.*anyformer train --resume"):
            train(recipe("full"), progress=False)
    directory = whole.with_name("full")
    assert [path.name for path in (directory / "checkpoints").iterdir()] == ["step-00000003"]
    train(resume=directory, progress=False)
    assert_same_run(whole, directory)


@contextmanager
def room_for_files_of(size: int) -> Iterator[None]:
    """Within, the system lets no file grow beyond `size` bytes, whoever writes it, in whatever language."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_moments_that_do_not_fit_end_the_run_with_its_last_checkpoint_whole(recipe: Recipes) -> None:
    """They are the largest file of all, and not Python writes it; nothing half written takes up the disk."""
    whole = train(recipe("whole"), progress=False).directory
    full = whole.with_name("full")
    moments = whole / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    with (
        room_for_files_of(moments.stat().st_size - 1000),
        pytest.raises(TrainingError, match=r"optimizer.safetensors cannot be written.*anyformer train --resume"),
    ):
        train(recipe("full"), progress=False)
    assert list((full / "checkpoints").iterdir()) == []
    train(resume=full, progress=False)
    assert_same_run(whole, full)


def test_a_full_disk_between_text_and_first_step_keeps_what_was_tokenised(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That may have taken hours; resuming goes on behind it."""

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(running, "number_of_steps", full)
        with pytest.raises(TrainingError, match=r"the run stopped: No space left on device; .* --resume"):
            train(recipe(), progress=False)
    directory = Path(recipe()["run"]["directory"])
    tokenised = (directory / "data" / "manifest.json").stat().st_mtime_ns
    assert train(resume=directory, progress=False).finished
    assert (directory / "data" / "manifest.json").stat().st_mtime_ns == tokenised


def test_a_full_disk_in_the_middle_of_a_row_is_mended_by_resuming(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a row is in the file; it is cut off and written again."""
    whole = train(recipe("whole"), progress=False).directory
    real = running.Metrics.write

    def torn(self: Any, row: dict[str, Any]) -> None:
        if row["step"] == 5:
            self._file.write(b'{"step": 5, "tok')
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(running.Metrics, "write", torn)
        with pytest.raises(TrainingError, match="No space left on device"):
            train(recipe("full"), progress=False)
    train(resume=whole.with_name("full"), progress=False)
    assert_same_run(whole, whole.with_name("full"))


def test_steps_that_are_not_finite_are_counted_and_end_the_run_when_in_a_row(
    recipe: Recipes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is survived, its row says null; three in a row are not."""
    real = Trainer.gradients
    bad = {3, 5}

    def poisoned(self: Trainer, windows: Any, generator: Any) -> float:
        loss = real(self, windows, generator)
        poisoned.calls += 1  # type: ignore[attr-defined]
        return float("nan") if poisoned.calls in bad else loss  # type: ignore[attr-defined]

    poisoned.calls = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(Trainer, "gradients", poisoned)
    result = train(recipe("survives", skip_limit=3), progress=False)
    assert result.finished and result.skipped == 2
    assert [row["step"] for row in rows(result.directory) if row["loss"] is None] == [3, 5]
    poisoned.calls, bad = 0, {3, 4, 5}  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match="not finite for 3 steps in a row, up to step 5"):
        train(recipe("ends", skip_limit=3), progress=False)


def test_training_goes_on_from_a_checkpoint(recipe: Recipes) -> None:
    """Its weights and its tokenizer; the first loss is near the last one of the run before."""
    first = train(recipe("first", steps=60), progress=False)
    more = recipe("more", steps=2)
    more["model"] = {"from": str(first.directory)}
    second = train(more, progress=False)
    begin = rows(second.directory)[0]["loss"]
    assert begin < 0.8 * rows(first.directory)[0]["loss"]
    assert begin == pytest.approx(rows(first.directory)[-1]["loss"], rel=0.2)


def test_a_tokenizer_can_be_trained_on_the_text(recipe: Recipes) -> None:
    """The model takes its vocabulary, and the run directory keeps it."""
    chosen = read_recipe({**recipe(steps=1), "tokenizer": {"train": {"vocabulary": 300}}})
    model = af.load(train(chosen, progress=False).directory)
    assert model.tokenizer is not None and 257 < model.tokenizer.vocabulary_size <= 300
    assert model.spec.output.embeddings.vocabulary == model.tokenizer.vocabulary_size


def test_a_preset_takes_the_vocabulary_of_the_tokenizer(recipe: Recipes) -> None:
    """A family's preset, at the size of the bytes."""
    model = af.load(train(recipe(steps=1), overrides=["model.preset=llama:tiny"], progress=False).directory)
    assert model.family == "llama" and model.spec.output.embeddings.vocabulary == 257


def test_without_a_learning_rate_the_usual_one_is_taken(recipe: Recipes) -> None:
    """By the width of the model, 16 here; lower for a checkpoint, whose weights it would undo."""
    fresh = recipe("fresh", warmup=0, steps=1)
    del fresh["training"]["learning_rate"]
    directory = train(fresh, progress=False).directory
    assert rows(directory)[0]["learning_rate"] == 0.5 / 16
    continued = {**fresh, "run": {"directory": f"{directory}-on"}, "model": {"from": str(directory)}}
    assert rows(train(continued, progress=False).directory)[0]["learning_rate"] == 0.05 / 16


def test_a_model_that_is_too_small_for_the_text_is_refused(recipe: Recipes) -> None:
    """Too few ids for the tokenizer; too few learned positions for a window."""
    narrow = recipe()
    narrow["model"]["spec"]["decoder"]["embeddings"] = {"vocabulary": 100}
    with pytest.raises(TrainingError, match="a vocabulary of 100 and the tokenizer 257"):
        train(narrow, progress=False)
    short = recipe()
    short["model"]["spec"]["decoder"]["embeddings"] = {"position": {"kind": "learned", "size": 31}}
    with pytest.raises(TrainingError, match="sequence_length=32 is longer than the 31 learned positions"):
        train(short, progress=False)


def test_another_machine_is_pointed_out(recipe: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    """Bits may differ there; the run goes on all the same."""
    directory = train(recipe(), progress=False).directory
    run = json.loads((directory / "run.json").read_text())
    run["environment"]["threads"] = 777
    (directory / "run.json").write_text(json.dumps(run))
    train(resume=directory)
    assert "threads was 777 and is" in capsys.readouterr().err


def test_the_random_numbers_of_the_caller_are_left_alone(recipe: Recipes) -> None:
    """A step seeds torch; that must not be seen outside."""
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train(recipe(steps=1), progress=False)
    assert torch.equal(torch.rand(2), expected)
