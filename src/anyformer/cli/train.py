"""anyformer train: from a recipe, or simply from texts, to a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyformer.cli.common import DebugOption, EncodingOption, JsonOption, SetOption, ThreadsOption, note, print_json
from anyformer.errors import TrainingError

if TYPE_CHECKING:
    from anyformer.training import Result

#: What texts without a recipe are trained by.
PRESET, MINUTES, OUT = "llama:tiny", 3.0, "run"


def train(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE.toml | TEXTS...]", help="A recipe, or text files, folders and globs.", show_default=False
        ),
    ] = None,
    settings: SetOption = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run from its last checkpoint.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="RUN", help="Write RUN/report.html now, of a run at any stage.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help=f"The run's directory ({OUT}, for texts).", show_default=False)
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help=f"The model's size, with fresh weights ({PRESET}, for texts).", show_default=False
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--from", metavar="MODEL", help="A checkpoint to continue from.", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", help=f"How long to train ({MINUTES:g}, for texts).", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="How many steps to train.", show_default=False)
    ] = None,
    validation: Annotated[
        list[str] | None,
        typer.Option("--validation", help="Texts to measure on; else some are held out.", show_default=False),
    ] = None,
    encoding: EncodingOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of everything random in the run.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Train a model: by a recipe, or on texts as they are.

    The run directory is a checkpoint like any other, at the end and after Ctrl-C, which saves what has been learned.
    """
    from anyformer import training
    from anyformer.training.scale.ranks import leads

    given = {
        "run.directory": str(out) if out is not None else None,
        "run.seed": seed,
        "model.preset": preset,
        "model.from": start,
        "training.minutes": minutes,
        "training.steps": steps,
        "data.validation": validation or None,
        "data.encoding": encoding or None,
    }
    # JSON's strings, numbers and lists of them are TOML's too.
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    overrides += settings or []
    if report is not None:
        if sources or overrides or resume is not None:
            raise TrainingError("--report looks at a run as it is; leave out recipe, texts, settings and --resume")
        page = training.write_report(report)
        if as_json:
            print_json({"report": str(page)})
        else:
            note(f"the report is {page}")
        return
    if resume is not None:
        if sources or any(not override.startswith("scale.") for override in overrides):
            raise TrainingError(
                "--resume goes on with a run as it is; leave out recipe, texts and settings (--set scale... may stand)"
            )
        result = training.train(resume=resume, overrides=overrides)
    else:
        result = training.train(_recipe(sources or []), overrides=overrides)
    if not leads():
        pass
    elif as_json:
        print_json(_facts(result))
    else:
        _tell(result)
    if not result.finished:
        raise typer.Exit(130)


def _recipe(sources: list[str]) -> str | dict[str, Any]:
    """The recipe named, or one made for the texts named."""
    recipes = [source for source in sources if source.endswith(".toml")]
    if not sources:
        raise TrainingError("there is nothing to train on; name a recipe (RECIPE.toml), or texts, or a run to --resume")
    if recipes and len(sources) > 1:
        raise TrainingError(f"name either one recipe or texts, not {recipes[0]} and {len(sources) - 1} more")
    if recipes:
        return recipes[0]
    return {
        "run": {"directory": OUT},
        "model": {"preset": PRESET},
        "data": {"train": sources},
        "training": {"minutes": MINUTES},
    }


def _facts(result: Result) -> dict[str, Any]:
    return {**vars(result), "directory": str(result.directory)}


def _tell(result: Result) -> None:
    said = [f"{result.step:,} of {result.steps:,} steps", f"{result.tokens:,} tokens", f"{result.elapsed:,.1f} s"]
    if result.loss is not None:
        said.append(f"loss {result.loss:.4f}")
    if result.validation_loss is not None:
        bits = result.validation_bits_per_byte
        said.append(f"validation {result.validation_loss:.4f}" + (f" ({bits:.4f} bits per byte)" if bits else ""))
    note(" · ".join(said))
    if (page := result.directory / "report.html").exists():
        note(f"the report is {page}")
    if result.finished:
        from anyformer import checkpoints

        trained = checkpoints.open(result.directory).spec
        asked = f'embed {result.directory} "..."' if trained.decoder is None else f'generate {result.directory} "..."'
        if trained.head is not None and "classification" in trained.head.kind:
            asked = f"evaluate {result.directory} LABELLED_TEXTS"
        note(f"the model is in {result.directory}; try: anyformer {asked}")
