"""`sweep`: sizes of one architecture over budgets of training FLOPs, for IsoFLOP curves and a law of one's own.

As everywhere in `laws`, a budget is C = 6·N·D: N parameters in all, D tokens (Hoffmann et al. 2022). What small models
take besides, in attention's scores above all, is counted and shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.comparing.asking import Texts, asking, place_of
from anyformer.comparing.equalising import narrowed, training_flops
from anyformer.comparing.report import write_sweep_report
from anyformer.comparing.results import Run, Sweep, SweptRun, read_run
from anyformer.comparing.running import Job, carry_out, devices
from anyformer.comparing.swapping import changed
from anyformer.comparing.variations import with_spec
from anyformer.disk import write_json
from anyformer.errors import ExperimentError, PlanError
from anyformer.laws import FittedLaw, Runs, fit, isoflop
from anyformer.planning import count
from anyformer.planning.scaling import CORRECTED
from anyformer.spec import Stack, Transformer
from anyformer.training import Recipe, read_recipe
from anyformer.training.recipe import put
from anyformer.training.watching.progress import Display

#: Sizes of a budget unless given, and the largest over the smallest: a parabola takes five, and has its bottom between.
SIZES, SPAN = 5, 16.0
#: A run of fewer steps learns more from its warm-up than from its budget.
FEWEST_STEPS = 20
#: Reading a text more often is no longer as good as fresh text (Muennighoff et al. 2023).
EPOCHS = 4


@dataclass(frozen=True)
class _Place:
    """A model and a number of tokens that together spend a budget."""

    budget: float
    recipe: Recipe
    spec: Transformer
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.budget:.4g}".replace("e+", "e") + f"-{count(self.spec)}"


def sweep(
    base: Recipe | Mapping[str, Any] | str | Path,
    budgets: Sequence[float],
    *,
    directory: str | Path,
    sizes: int = SIZES,
    span: float = SPAN,
    seeds: int = 1,
    overrides: Iterable[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> Sweep:
    """Train models of a recipe's architecture at `sizes` sizes for each budget (FLOPs), on D = C / 6N tokens each.

    - The sizes of a budget are the compute-optimal one (Besiroglu et al. 2024) times factors from 1/√`span` to √`span`;
      depth and width grow together, as in the base.
    - `directory`: where runs and result are; `anyformer plan --fit DIRECTORY` fits a law to them. Asked again, the same
      question goes on where it was stopped.

    Raises `ExperimentError` where nothing can be swept, and what a run raises (`TrainingError`, `DataError`).
    """
    directory = Path(directory).expanduser()
    recipe = read_recipe(base, [*overrides, f"run.directory={str(directory / 'runs')!r}"])
    recipe = recipe.replace(run=recipe.run.replace(watch=(), samples=0))
    _check(recipe, budgets, sizes, span, seeds)
    asked = {
        "base": {key: value for key, value in recipe.to_data().items() if key != "run"} | {"seed": recipe.run.seed},
        "budgets": [float(budget) for budget in budgets],
        "sizes": sizes,
        "span": float(span),
        "seeds": seeds,
    }
    with asking(directory, asked):
        texts = Texts(directory, Display(progress))
        whole = texts.spec(recipe)
        ladder = np.geomspace(span**-0.5, span**0.5, sizes) if sizes > 1 else (1.0,)
        wanted = [(budget, factor * CORRECTED.parameters(budget)) for budget in sorted(budgets) for factor in ladder]
        places = [_place(recipe, whole, budget, size) for budget, size in wanted]
        every = [(place, recipe.run.seed + turn) for turn in range(seeds) for place in places]
        jobs = [_job(directory, place, seed) for place, seed in every]
        for job in jobs:
            texts.give(job.recipe)
        workers = workers if workers is not None else max(1, len(devices()))
        carry_out(jobs, workers=workers, progress=progress)
    swept = tuple(_swept(place, read_run(job.directory, seed)) for (place, seed), job in zip(every, jobs))
    notes = tuple(_notes(recipe, swept, texts.of(recipe).train.targets))
    result = Sweep(directory, asked, swept, *_law(swept), notes)
    write_json(directory / "sweep.json", result.to_data())
    write_sweep_report(result)
    return result


def _check(recipe: Recipe, budgets: Sequence[float], sizes: int, span: float, seeds: int) -> None:
    if not budgets:
        raise ExperimentError("there is no budget; give FLOPs, such as --budgets 1e12,3e12")
    for budget in budgets:
        if not 0 < budget < float("inf"):
            raise ExperimentError(f"a budget of {budget:g} FLOPs trains nothing; give one such as 1e12")
    if len({*budgets}) < len(budgets):
        raise ExperimentError("a budget is given twice; leave one of the two out")
    if sizes < 1 or seeds < 1:
        raise ExperimentError(f"{sizes} sizes and {seeds} seeds make no run; give at least one of each")
    if not 1 <= span < float("inf") or (sizes > 1 and span == 1):
        raise ExperimentError(f"sizes that span a factor of {span:g} are no ladder; give more than 1, such as 16")
    if recipe.model.source is not None:
        raise ExperimentError(
            "a sweep trains fresh models of many sizes, and model.from is one that has learned; name "
            "a preset or a spec instead"
        )


def _place(recipe: Recipe, whole: Transformer, budget: float, size: float) -> _Place:
    spec = of_size(whole, size)
    tokens = round(budget / 6 / count(spec))
    batch = recipe.training.batch_tokens
    if tokens < FEWEST_STEPS * batch:
        raise ExperimentError(
            f"{budget:g} FLOPs are {tokens:,} tokens for {count(spec):,} parameters, fewer than {FEWEST_STEPS} steps "
            f"of training.batch_tokens={batch:,}; raise the budget, or lower that or --span"
        )
    data = with_spec(recipe, spec).to_data()
    put(data, "training.tokens", tokens)
    return _Place(budget, read_recipe(data), spec, tokens)


def of_size(spec: Transformer, parameters: float) -> Transformer:
    """A model of the same architecture with so many parameters, within a hundredth: width over depth stays about what
    it is. Raises `ExperimentError` where no width makes it."""
    factor = (parameters / count(spec)) ** (1 / 3)

    def shape(made: Transformer) -> float:
        return log(made.output.dim / made.output.depth)

    depths = {max(1, round(spec.output.depth * factor * nudge)) for nudge in (0.75, 1, 1.33)}
    deep = (deepened(spec, depth / spec.output.depth) for depth in sorted(depths))
    found = [made for each in deep if (made := narrowed(each, count, parameters)) is not None]
    if not found:
        raise ExperimentError(
            f"no width of this architecture has {parameters:,.0f} parameters, with a vocabulary of "
            f"{spec.output.embeddings.vocabulary:,}; raise the budget, or lower --span or the vocabulary"
        )
    return min(found, key=lambda made: abs(shape(made) - shape(spec)))


def deepened(spec: Transformer, factor: float) -> Transformer:
    """A model with so many times the layers in each stack, at least one."""
    return changed(spec, Stack, lambda part: part.replace(depth=max(1, round(part.depth * factor))))


def _job(directory: Path, place: _Place, seed: int) -> Job:
    where = place_of(directory, place.name, seed)
    recipe = place.recipe.replace(run=place.recipe.run.replace(directory=where, seed=seed))
    return Job(f"{place.budget:.4g} FLOPs, {count(place.spec):,} parameters, seed {seed}", recipe)


def _swept(place: _Place, run: Run) -> SweptRun:
    length = place.recipe.training.sequence_length
    return SweptRun(
        budget=place.budget,
        parameters=count(place.spec),
        flops=training_flops(place.spec, length) * run.tokens,
        depth=place.spec.output.depth,
        dim=place.spec.output.dim,
        run=run,
    )


def _law(swept: Sequence[SweptRun]) -> tuple[Runs, Any, FittedLaw | None]:
    """The runs as points, their IsoFLOP curves, and a law where they are enough for one."""
    points = [(each.parameters, each.run.tokens, each.loss) for each in swept if each.loss is not None]
    if not points:
        raise ExperimentError("every run of the sweep diverged; lower training.learning_rate")
    runs = Runs(*np.array(points, np.float64).T)
    try:
        law = fit(runs)
    except PlanError:
        law = None
    return runs, isoflop(runs), law


def _notes(recipe: Recipe, swept: Sequence[SweptRun], tokens: int) -> Iterator[str]:
    """What to bear in mind of a sweep."""
    again = [each for each in swept if each.run.tokens > EPOCHS * tokens]
    if again:
        yield (
            f"{len(again)} of {len(swept)} runs read the text of {tokens:,} tokens more than {EPOCHS} times, where it "
            f"is no longer as good as fresh text."
        )
    rate = recipe.training.learning_rate
    if rate is not None:
        yield f"All sizes train at learning_rate {rate:g}; without it in the recipe, each takes the usual of its width."
    off = max((abs(each.flops / each.budget - 1) for each in swept if each.loss is not None), default=0.0)
    if off > 0.2:
        yield (
            f"A budget is 6·N·D here; counted exactly, attention's scores and all, the runs take up to {off:.0%} more "
            f"or less."
        )
    diverged = sum(each.loss is None for each in swept)
    if diverged:
        yield f"Left out, for it diverged: {diverged} of {len(swept)} runs."
