"""`compare`: variants of a recipe, held equal, over several seeds, beside the recipe itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.comparing.asking import Texts, asking, place_of
from anyformer.comparing.equalising import equalised, training_flops
from anyformer.comparing.report import write_report
from anyformer.comparing.results import Comparison, Row, Run, read_run, with_statistics
from anyformer.comparing.running import Job, carry_out, devices
from anyformer.comparing.statistics import CONFIDENCE, student
from anyformer.comparing.variations import Variant, Vary, read_vary, variants, with_spec
from anyformer.disk import write_json
from anyformer.errors import ExperimentError
from anyformer.planning import count
from anyformer.spec import Transformer
from anyformer.training import Recipe, read_recipe
from anyformer.training.objectives import OBJECTIVES
from anyformer.training.watching.progress import Display

#: What variants can be held equal in.
EQUAL = ("parameters", "flops", "time", "steps")
#: From so many differences on, a few are larger than the noise by chance alone.
MANY = 5
#: Where one run of a model saw so many times what another did in the same time, neither was alone on the machine.
UNEVEN = 1.25


def compare(
    base: Recipe | Mapping[str, Any] | str | Path,
    vary: Vary,
    *,
    directory: str | Path,
    seeds: int = 3,
    equal: str | None = None,
    one_at_a_time: bool = False,
    overrides: Iterable[str] = (),
    workers: int | None = None,
    confidence: float = CONFIDENCE,
    progress: bool = True,
) -> Comparison:
    """Train variants of a recipe (a path, plain data, or a `Recipe`; `overrides` such as `training.steps=200`) over
    `seeds` seeds each, and compare them with the recipe itself, seed by seed: the same data in the same order.

    - `vary`: parts of the model and keys of the recipe with their values: `["position=rotary,alibi"]`, or
      `{"position": ["rotary", "alibi"]}`. Several are varied in all combinations, or `one_at_a_time`.
    - `equal`: `parameters` or `flops` (per token) adjusts widths until those are the base's within a hundredth; `time`
      gives each run the recipe's `training.minutes`; `steps` sees to it that all take as many. None holds nothing
      equal but the recipe's own length.
    - `directory`: where the runs and the result are. Asked again, the same question goes on where it was stopped.
    - `workers`: runs at a time, in processes of their own; by default one for every accelerator, or a single one.

    Raises `ExperimentError` where nothing can be compared, and what a run raises (`TrainingError`, `DataError`).
    """
    directory = Path(directory).expanduser()
    recipe = read_recipe(base, [*overrides, f"run.directory={str(directory / 'runs')!r}"])
    recipe = recipe.replace(run=recipe.run.replace(watch=(), samples=0))
    varied = read_vary(vary)
    student(confidence, 1)
    if seeds < 1:
        raise ExperimentError(f"{seeds} seeds make no run; the least is 1, and the noise shows from 2 on")
    found = variants(recipe, varied, one_at_a_time=one_at_a_time)
    _check_length(found, equal)
    asked = {
        "base": {key: value for key, value in recipe.to_data().items() if key != "run"} | {"seed": recipe.run.seed},
        "vary": {name: list(values) for name, values in varied.items()},
        "one_at_a_time": one_at_a_time,
        "equal": equal,
        "seeds": seeds,
    }
    with asking(directory, asked):
        texts = Texts(directory, Display(progress))
        contenders = _held_equal(found, texts, equal)
        jobs = [
            [_job(directory, contender, recipe.run.seed + turn) for contender in contenders] for turn in range(seeds)
        ]
        in_turn = [job for turn in jobs for job in turn]
        for job in in_turn:
            texts.give(job.recipe)
        workers = workers if workers is not None else max(1, len(devices()))
        carry_out(in_turn, workers=workers, progress=progress)
    over = "seconds" if equal == "time" else "tokens"
    measure = _measure([contender.recipe for contender in contenders], texts)
    runs = [[read_run(job.directory, job.recipe.run.seed, over) for job in turn] for turn in jobs]
    rows = [_row(contender, of, measure) for contender, of in zip(contenders, zip(*runs))]
    notes = (*_notes(contenders, texts, asked | {"confidence": confidence}, workers), *_disturbed(rows, equal))
    result = Comparison(directory, asked, confidence, measure, over, with_statistics(rows, confidence), notes)
    write_json(directory / "comparison.json", result.to_data())
    write_report(result)
    return result


def _check_length(found: Sequence[Variant], equal: str | None) -> None:
    """See that the recipes' lengths are such that what is to be held equal can be."""
    if equal is not None and equal not in EQUAL:
        raise ExperimentError(f"variants cannot be held equal in '{equal}'; there are {', '.join(EQUAL)}")
    lengths = [variant.recipe.training for variant in found]
    if equal == "time" and any(settings.minutes is None for settings in lengths):
        raise ExperimentError("for equal time the recipe says how much: set training.minutes=3, say")
    if equal == "time" and len({settings.minutes for settings in lengths}) > 1:
        raise ExperimentError("training.minutes is varied, and is to be held equal; leave out one of the two")
    took = {(settings.steps, settings.tokens and -(-settings.tokens // settings.batch_tokens)) for settings in lengths}
    if equal == "steps" and (len(took) > 1 or took == {(None, None)}):
        raise ExperimentError("for equal steps the recipe says how many, the same for all: set training.steps=200, say")


@dataclass(frozen=True)
class _Contender:
    """A variant as it is trained: with its spec, vocabulary and all, and what was adjusted to hold it equal."""

    variant: Variant
    recipe: Recipe
    spec: Transformer
    adjusted: str = ""


def _held_equal(found: Sequence[Variant], texts: Texts, equal: str | None) -> list[_Contender]:
    base = texts.spec(found[0].recipe)
    fair = [_Contender(found[0], found[0].recipe, base)]
    return fair + [_contender(variant, texts.spec(variant.recipe), base, equal) for variant in found[1:]]


def _contender(variant: Variant, spec: Transformer, base: Transformer, equal: str | None) -> _Contender:
    """A variant held equal to the base, by its widths."""
    if equal not in ("parameters", "flops"):
        return _Contender(variant, variant.recipe, spec)
    try:
        settled, adjusted = equalised(spec, base, equal, variant.recipe.training.sequence_length)
    except ExperimentError as error:
        raise ExperimentError(f"{variant.name}: {error}") from None
    if not adjusted:
        return _Contender(variant, variant.recipe, spec)
    if variant.recipe.model.source is not None:
        raise ExperimentError(f"{variant.name}: a checkpoint's widths are what they are; leave out equal {equal}")
    if settled == base:
        raise ExperimentError(f"{variant.name}, with {equal} held equal, is the base again; hold something else equal")
    return _Contender(variant, with_spec(variant.recipe, settled), settled, adjusted)


def _job(directory: Path, contender: _Contender, seed: int) -> Job:
    place = place_of(directory, contender.variant.name, seed)
    recipe = contender.recipe.replace(run=contender.recipe.run.replace(directory=place, seed=seed))
    return Job(f"{contender.variant.name}, seed {seed}", recipe)


def _row(contender: _Contender, runs: tuple[Run, ...], measure: str) -> Row:
    return Row(
        name=contender.variant.name,
        settings=contender.variant.settings,
        parameters=count(contender.spec),
        flops_per_token=training_flops(contender.spec, contender.recipe.training.sequence_length),
        adjusted=contender.adjusted,
        runs=runs,
        losses=tuple(run.measured.get(measure) for run in runs),
    )


def _measure(recipes: Sequence[Recipe], texts: Texts) -> str:
    """What is compared: the loss of a token; where tokens differ, bits a byte, as far as the objective has them."""
    same_tokens = len({texts.place(recipe) for recipe in recipes}) == 1
    likelihood = all(OBJECTIVES[recipe.training.objective].is_likelihood for recipe in recipes)
    return "bits_per_byte" if likelihood and not same_tokens else "loss"


def _notes(contenders: Sequence[_Contender], texts: Texts, asked: Mapping[str, Any], workers: int) -> Iterator[str]:
    """What to bear in mind of a comparison."""
    recipes = [contender.recipe for contender in contenders]
    if asked["seeds"] == 1:
        yield "One seed tells nothing of the noise; give two or more (--seeds 3) to see what is larger than it."
    if len({recipe.training.objective for recipe in recipes}) > 1:
        yield "The objectives differ, and a loss at one is not a loss at another."
    if len({recipe.data.model_dump_json() for recipe in recipes}) > 1:
        yield "The texts differ, and what is held out with them: a loss on one is not a loss on another."
    elif len({texts.place(recipe) for recipe in recipes}) > 1:
        yield "The tokens differ, so bits per byte are compared where the objective has them, not losses per token."
    if asked["equal"] == "time" and workers > max(1, len(devices())):
        yield (
            f"{workers} workers share this machine's memory and caches, so each had less done in its time than it "
            f"would alone, and not all the same less; --workers 1 gives each the whole machine."
        )
    if len(contenders) > MANY:
        yield (
            f"Of {len(contenders) - 1} differences, some are larger than the noise by chance alone: one in "
            f"{round(1 / (1 - asked['confidence']))} where nothing differs."
        )


def _disturbed(rows: Sequence[Row], equal: str | None) -> Iterator[str]:
    """Whether something else took of the time that was to be equal."""
    for row in rows if equal == "time" else ():
        seen = [run.tokens for run in row.runs if run.is_whole]
        if seen and max(seen) > UNEVEN * min(seen):
            yield (
                f"In the same time, runs of {row.name} saw from {min(seen):,} to {max(seen):,} tokens: something else "
                f"used the machine meanwhile, and a quiet one compares better."
            )
