"""How long a run is: the recipe's steps, or what its tokens, FLOPs or minutes come to."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from statistics import median

from anyformer.disk import write_json
from anyformer.training.recipe import Recipe
from anyformer.training.state import read_json
from anyformer.training.trainer import Trainer
from anyformer.training.watching.progress import Display

#: Before a run of so many minutes, the share of them spent on finding out how long a step takes, and how many steps'
#: tokens a validation reads there: what all of them take follows from these.
REHEARSAL, REHEARSED_BATCHES = 0.03, 8


def number_of_steps(recipe: Recipe, directory: Path, trainer: Trainer, display: Display) -> int:
    """The recipe's, or what its minutes come to; decided once, then kept in run.json."""
    settings = recipe.training
    run = read_json(directory / "run.json")
    if "steps" not in run:
        if settings.minutes is not None:
            display.note("finding out how long a step takes ...")
            run["steps"] = _rehearsed(recipe, trainer, settings.minutes * 60)
            display.note(f"training.minutes={settings.minutes:g} comes to {run['steps']:,} steps on this machine")
        else:
            tokens = settings.tokens or 0
            if settings.flops is not None:
                tokens = settings.flops / trainer.flops * settings.batch_tokens
            run["steps"] = settings.steps or max(1, math.ceil(tokens / settings.batch_tokens))
        write_json(directory / "run.json", run)
    return run["steps"]


def _rehearsed(recipe: Recipe, trainer: Trainer, seconds: float) -> int:
    """How many steps, with their validations, fit into `seconds`. A copy of the model is trained for a moment, so that
    the run itself is the same as one that was told its number of steps."""
    began = time.monotonic()
    settings, held_out = recipe.training, int(trainer.held_out.sizes.sum())
    whole = min(settings.validate_tokens, held_out)
    part = min(whole, REHEARSED_BATCHES * settings.batch_tokens)
    shorter = recipe.replace(training=settings.replace(validate_tokens=part))
    copied = Trainer(shorter, copy.deepcopy(trainer.model), trainer.text)
    copied.update(0, 0.0)
    times: list[float] = []
    while len(times) < 3 or time.monotonic() - began < REHEARSAL * seconds:
        start = time.monotonic()
        copied.update(len(times), 0.0)
        times.append(time.monotonic() - start)
    start = time.monotonic()
    copied.validate()
    validation = (time.monotonic() - start) * whole / part
    left = seconds - (time.monotonic() - began)
    if settings.validate_every is None:
        at_the_end, each = 20 * validation, 0.0
    else:
        at_the_end, each = validation, validation / settings.validate_every
    # However slow a validation is here, at least half of the time is for training.
    return max(1, int(max(left - at_the_end, left / 2) / (median(times) + each)))
