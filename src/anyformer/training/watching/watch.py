"""What people see of a run: the display while it goes on, trackers, samples now and then, and a report at its end.

All of it looks on: the weights and metrics of a run are the same to the bit whoever watches, and what goes wrong here
is said, and stops nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyformer.data import spread
from anyformer.training.recipe import Recipe
from anyformer.training.state import Metrics, NoMetrics, metrics_rows
from anyformer.training.trainer import Trainer
from anyformer.training.watching.peak import peak_tokens
from anyformer.training.watching.progress import Display
from anyformer.training.watching.report import write_report
from anyformer.training.watching.samples import sample_every, take
from anyformer.training.watching.trackers import following, trackers_of

Watch = Callable[[Mapping[str, Any]], None]


@contextmanager
def watched(
    trainer: Trainer, recipe: Recipe, directory: Path, display: Display, *, begin: int, steps: int, validate_every: int
) -> Iterator[Watch]:
    """Gives the function to call with the metrics row of each step, from `begin` to `steps`. Of many processes, the
    first one is watched; the others take samples with it. At the end, however it comes about, the report is written."""
    if begin == steps:
        yield lambda row: None
        return
    if not trainer.ranks.leads:
        with sampling(trainer, recipe, NoMetrics(), begin, steps, validate_every, display.note) as sample:
            yield sample
        return
    rows = metrics_rows(directory / "metrics.jsonl")
    title, peak = str(directory), peak_tokens(directory, trainer, display.note)
    samples = Metrics(directory / "samples.jsonl")
    try:
        with (
            display.steps(begin, steps, title=title, peak=peak, earlier=rows) as show,
            following(trackers_of(recipe), directory, recipe, begin, display.note) as tell,
            sampling(trainer, recipe, samples, begin, steps, validate_every, display.note) as sample,
        ):

            def watch(row: Mapping[str, Any]) -> None:
                show(row)
                tell(row)
                sample(row)

            yield watch
    finally:
        try:
            write_report(directory)
        except Exception as error:
            display.note(f"there is no report of the run ({type(error).__name__}: {error})")


@contextmanager
def sampling(
    trainer: Trainer,
    recipe: Recipe,
    written: Metrics,
    begin: int,
    steps: int,
    validate_every: int,
    note: Callable[[str], None],
) -> Iterator[Watch]:
    """Gives the function that takes samples at the steps that are to have some, which follow from the recipe alone, and
    writes them. Every process takes the same."""
    run, tokens = recipe.run, steps * recipe.training.batch_tokens
    every = run.sample_every or sample_every(steps, validate_every, tokens, max(run.samples, 1))
    count = len(trainer.held_out.sizes)
    examples = [trainer.held_out[index] for index in spread(count, run.samples)] if run.samples else []
    if not examples:
        yield lambda row: None
        return
    with written:
        written.cut_back(begin)

        def sample(row: Mapping[str, Any]) -> None:
            if not examples or (row["step"] % every and row["step"] != steps):
                return
            try:
                with trainer.result():
                    samples = take(trainer.model, trainer.objective, examples, run.seed)
                written.write({"step": row["step"], "samples": samples})
            except Exception as error:
                examples.clear()
                note(f"no more samples are taken ({type(error).__name__}: {error}); the run goes on")
            trainer.ranks.settle()

        yield sample
