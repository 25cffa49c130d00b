"""anyformer experiment: a claim of the field, put to the test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anyformer.cli.common import (
    DebugOption,
    JsonOption,
    ThreadsOption,
    new_table,
    note,
    print_json,
    print_table,
    waiting,
)


def experiment(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which; without it all are listed.", show_default=False)
    ] = None,
    scale: Annotated[
        float, typer.Option("--scale", help="How much work: 1 is minutes on two cores, 0.1 only shows that it runs.")
    ] = 1.0,
    seed: Annotated[int, typer.Option("--seed", help="Of weights, batches and draws.")] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", help="A text of yours, where it takes one.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="A model of yours, where it takes one.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where NAME.json and NAME.svg go.")] = Path("experiments"),
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Put a claim of the field to the test: numbers, a plot, and a verdict that is computed from the numbers.

    Each runs for at most ten minutes on two cores, and can come out either way.
    """
    with waiting("starting torch"):
        from anyformer import experiments
    if name is None:
        _list(as_json)
        return
    found = experiments.experiment(name)
    if not as_json:
        note(f"{found.claim}\n  {found.source}\n  what would refute it: {found.refuted_by}")
    result = experiments.run(found, out, scale=scale, seed=seed, data=data, model=model, say=note)
    if as_json:
        print_json(result)
        return
    print(f"\n{result['verdict']}: {result['because']}")
    print(f"{out / name}.json and {name}.svg, after {result['seconds']:.0f} seconds")


def _list(as_json: bool) -> None:
    from anyformer import experiments

    found = [experiments.experiment(name) for name in experiments.names()]
    if as_json:
        rows: list[dict[str, Any]] = [
            {"name": one.name, "claim": one.claim, "source": one.source, "takes": one.takes} for one in found
        ]
        print_json({"experiments": rows})
        return
    table = new_table("", "claim", "source")
    for column in table.columns:
        column.justify = "left"
    for one in found:
        table.add_row(one.name, one.claim, one.source)
    print_table(table)
