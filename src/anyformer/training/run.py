"""A run, from a recipe to a model: one loop, straight down, that can be stopped anywhere and goes on to the same bits.

    for each step: update -> now and then a validation -> a row of metrics -> now and then a checkpoint

A run that was killed and resumed ends in the same weights as one that was not, on the same machine with the same
number of threads.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.disk import aside_of, said, write_json
from anyformer.errors import AnyformerError, CheckpointError, TextError, TrainingError
from anyformer.model.building import best_device
from anyformer.training.length import number_of_steps
from anyformer.training.prepare import (
    Text,
    check_model,
    check_source,
    described,
    prepare_text,
    saved_model,
    starting_model,
)
from anyformer.training.recipe import Recipe, read_recipe
from anyformer.training.scale.ranks import Alone, joined, leads
from anyformer.training.scale.sizes import check as check_scale
from anyformer.training.scale.snapshots import is_sharded
from anyformer.training.schedules import learning_rate, usual_peak
from anyformer.training.state import (
    Checkpoints,
    Counters,
    Metrics,
    NoMetrics,
    held,
    read_json,
    read_metrics,
)
from anyformer.training.trainer import Trainer
from anyformer.training.watching.circumstances import circumstances
from anyformer.training.watching.progress import Display
from anyformer.training.watching.trackers import trackers_of
from anyformer.training.watching.watch import watched


@dataclass(frozen=True)
class Result:
    """What came of a run: its directory, which is a checkpoint; how far it got; the last losses.

    `loss` and `validation_loss` are nats a token. `finished` is False where it was interrupted.
    """

    directory: Path
    step: int
    steps: int
    tokens: int
    elapsed: float
    skipped: int
    loss: float | None
    validation_loss: float | None
    validation_bits_per_byte: float | None
    finished: bool


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path | None = None,
    *,
    overrides: Iterable[str] = (),
    resume: str | Path | None = None,
    progress: bool = True,
    again: str | None = None,
) -> Result:
    """Train a model by a recipe (a path, plain data, or a `Recipe`; `overrides` such as `training.steps=200`), or
    `resume` the run in a directory from its last whole checkpoint; then only `scale` can be set anew. `again` is what a
    person is told to do to go on with a run that was stopped: by default `anyformer train --resume`.

    The first Ctrl-C lets the step end, saves, and returns; a second one stops at once. Raises `TrainingError` where
    the recipe or the directory cannot be used, the disk is full, or the loss stays non-finite; `DataError` where the
    text cannot be read.
    """
    began = time.monotonic()
    display = Display(progress and leads())
    if (recipe is None) == (resume is None):
        raise TrainingError("give either a recipe to start a run or the directory of a run to resume")
    if resume is not None:
        directory = Path(resume)
        recipe = _reopen(directory, list(overrides), display)
    else:
        assert recipe is not None
        recipe = read_recipe(recipe, overrides)
        directory = recipe.run.directory
    with joined(recipe.scale) as ranks, ExitStack() as stack:
        if resume is None:
            ranks.first(lambda: _claim(directory, recipe) if ranks.leads else None)
        ranks.first(lambda: stack.enter_context(held(directory)) if ranks.leads else None)
        again = again or _resuming(directory)
        return _guarded(recipe, directory, display, began, ranks, again, is_new=resume is None)


def _guarded(
    recipe: Recipe, directory: Path, display: Display, began: float, ranks: Alone, again: str, *, is_new: bool
) -> Result:
    """The run; what ends it early says how to go on."""
    try:
        with torch.random.fork_rng([ranks.device] if ranks.device.type == "cuda" else []):
            return _run(recipe, directory, display, began, ranks, again)
    except (AnyformerError, OSError) as error:
        # What was tokenised before the disk was full need not be tokenised again.
        data = directory / "data"
        is_kept = isinstance(error, OSError) and (data.exists() or aside_of(data).exists())
        has_begun = is_kept or (directory / "metrics.jsonl").exists()
        if not has_begun and is_new and ranks.leads:
            _unclaim(directory)
        what = said(error) if isinstance(error, OSError) else str(error)
        if has_begun and isinstance(error, OSError | CheckpointError | TextError):
            raise TrainingError(
                f"the run stopped: {what}; what was saved before is whole, so mend that and go on with: {again}"
            ) from error
        if isinstance(error, OSError):
            raise TrainingError(f"the run could not begin: {what}") from error
        raise
    except KeyboardInterrupt:
        display.note(f"stopped at once; go on from what is saved with: {again}")
        raise


def _resuming(directory: Path) -> str:
    command = f"anyformer train --resume {shlex.quote(str(directory))}"
    return command if os.environ.get("WORLD_SIZE", "1") == "1" else f"{command}, under torchrun as before"


def _claim(directory: Path, recipe: Recipe) -> None:
    """Make a directory a run's own."""
    try:
        _make_own(directory, recipe)
    except OSError as error:
        raise TrainingError(f"run.directory: {directory} cannot hold a run: {said(error)}") from None


def _make_own(directory: Path, recipe: Recipe) -> None:
    if (directory / "run.json").exists():
        raise TrainingError(
            f"{directory} holds a run already; go on with it: {_resuming(directory)} -- or choose another run.directory"
        )
    if (directory / "model.safetensors").exists():
        raise TrainingError(f"{directory} holds a model, which the run would replace; choose another run.directory")
    directory.mkdir(parents=True, exist_ok=True)
    run = {"recipe": recipe.to_data(), "environment": _environment(), "started": circumstances()}
    write_json(directory / "run.json", run)


def _unclaim(directory: Path) -> None:
    """Leave nothing of a run that never took a step: what was wrong with its recipe can be mended and tried again."""
    (directory / "run.json").unlink(missing_ok=True)
    shutil.rmtree(directory / "data", ignore_errors=True)
    if not any(directory.iterdir()):
        directory.rmdir()


def _reopen(directory: Path, overrides: list[str], display: Display) -> Recipe:
    """The recipe of a run, from its directory. It stays what it is, but for how it is divided over processes."""
    if not all(override.startswith("scale.") for override in overrides):
        raise TrainingError("a resumed run keeps its recipe; nothing can be set but scale")
    if not (directory / "run.json").exists():
        raise TrainingError(f"{directory} holds no run to resume (it has no run.json); start one with a recipe")
    run = read_json(directory / "run.json")
    then, now = run["environment"], _environment()
    for name in then:
        if then[name] != now.get(name):
            display.note(f"{name} was {then[name]} and is {now.get(name)}: the rest may differ in the last bits")
    return read_recipe(run["recipe"], overrides)


def _environment() -> dict[str, Any]:
    """What the bits of a run depend on besides its recipe."""
    return {
        "machine": platform.processor() or platform.machine(),
        "device": str(best_device()),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _run(recipe: Recipe, directory: Path, display: Display, began: float, ranks: Alone, again: str) -> Result:
    settings = recipe.training
    ranks.first(lambda: _check(recipe, ranks))
    text = ranks.first(lambda: prepare_text(recipe, directory, display))
    ranks.first(lambda: check_source(recipe, directory) if ranks.leads else None)
    saved = ranks.checkpoints(directory, settings.checkpoint_keep)
    trainer, counters = _begin(recipe, text, saved, display, ranks)
    began -= counters.elapsed
    steps = ranks.first(lambda: number_of_steps(recipe, directory, trainer, display))
    validate_every = settings.validate_every or max(1, steps // 20)
    # Adapters begin fresh, too.
    is_fresh = recipe.model.source is None or recipe.lora is not None
    peak = settings.learning_rate or usual_peak(trainer.model.spec.output.dim, is_fresh=is_fresh)
    checkpoint_every = settings.checkpoint_every or max(1, steps // 10)
    metrics = Metrics(directory / "metrics.jsonl") if ranks.leads else NoMetrics()
    metrics.cut_back(counters.step)

    def save() -> None:
        metrics.sync()
        saved.save(counters, trainer.write)

    watching = watched(
        trainer, recipe, directory, display, begin=counters.step, steps=steps, validate_every=validate_every
    )
    with metrics, watching as watch, _interruption() as interrupted:
        for step in range(counters.step, steps):
            rate = learning_rate(
                step,
                steps,
                peak=peak,
                schedule=settings.schedule,
                warmup=settings.warmup,
                final=settings.final,
            )
            update = trainer.update(step, rate)
            is_last = step + 1 == steps
            measured = trainer.validate() if is_last or (step + 1) % validate_every == 0 else {}
            counters = replace(
                counters,
                step=step + 1,
                tokens=counters.tokens + settings.batch_tokens,
                elapsed=round(time.monotonic() - began, 3),
                skipped=counters.skipped + update.skipped,
                skipped_in_a_row=counters.skipped_in_a_row + 1 if update.skipped else 0,
            )
            row = {
                "step": counters.step,
                "tokens": counters.tokens,
                "elapsed": counters.elapsed,
                "loss": _finite(update.loss),
                "gradient_norm": _finite(update.gradient_norm),
                "learning_rate": rate,
                **{name: _finite(value) for name, value in measured.items()},
            }
            metrics.write(row)
            watch(row)
            if counters.skipped_in_a_row == settings.skip_limit:
                raise TrainingError(
                    f"the loss or its gradient was not finite for {settings.skip_limit} steps in a row, up to step "
                    f"{counters.step}; try a lower training.learning_rate, a longer warmup or precision 'float32'"
                )
            stops = ranks.any(interrupted())
            if is_last or stops or counters.step % checkpoint_every == 0:
                save()
            if stops:
                break
        # Also of an interrupted run, so that what it has learned so far can be used as any model; and the report, which
        # is written when nobody watches any longer, says what it is.
        trainer.save(directory)
    finished = counters.step == steps
    if not finished:
        display.note(f"stopped and saved at step {counters.step:,}; go on with: {again}")
    if counters.skipped:
        display.note(f"{counters.skipped:,} steps were skipped for a loss or gradient that was not finite")
    return _result(directory, counters, steps, finished)


def _check(recipe: Recipe, ranks: Alone) -> None:
    """Find out before anything long begins what cannot be."""
    check_model(recipe)
    check_scale(recipe, described(recipe), ranks.sizes)
    trackers_of(recipe)


def _begin(recipe: Recipe, text: Text, saved: Checkpoints, display: Display, ranks: Alone) -> tuple[Trainer, Counters]:
    """The trainer as the last whole checkpoint has it, or as the recipe begins."""
    if ranks.leads:
        saved.tidy()
    found = ranks.newest(saved, display.note)
    if found is None or is_sharded(found[0]):
        model = starting_model(recipe, text.tokenizer, text.labels, ranks)
    else:
        model = saved_model(recipe, text, found[0], ranks)
    trainer = Trainer(recipe, model, text, ranks)
    if found is None:
        return trainer, Counters()
    path, counters = found
    trainer.read(path)
    display.note(f"resuming at step {counters.step:,} from {path}")
    return trainer, counters


@contextmanager
def _interruption() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C (or SIGTERM) is only noted; gives the function that says whether there was one."""
    asked: list[int] = []

    def note(number: int, frame: Any) -> None:
        # A cluster sends SIGTERM to every process, and torchrun passes on its own: a second one asks for no more.
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _result(directory: Path, counters: Counters, steps: int, finished: bool) -> Result:
    rows = read_metrics(directory / "metrics.jsonl")
    measured = next((row for row in reversed(rows) if "validation_loss" in row), {})
    return Result(
        directory=directory,
        step=counters.step,
        steps=steps,
        tokens=counters.tokens,
        elapsed=counters.elapsed,
        skipped=counters.skipped,
        loss=rows[-1]["loss"] if rows else None,
        validation_loss=measured.get("validation_loss"),
        validation_bits_per_byte=measured.get("validation_bits_per_byte"),
        finished=finished,
    )
