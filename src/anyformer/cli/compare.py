"""anyformer compare: variants of a recipe side by side, held equal, over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anyformer.cli.common import (
    BaseArgument,
    DebugOption,
    JsonOption,
    RunsOption,
    SeedsOption,
    SetOption,
    ThreadsOption,
    WorkersOption,
    new_table,
    note,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from anyformer.comparing import Comparison


def compare(
    base: BaseArgument,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            "--vary",
            metavar="KEY=A,B,C",
            help="position=rotary,alibi,none · kv_heads=8,4,1 · optimizer=adamw,muon ... Several: all combinations.",
            show_default=False,
        ),
    ] = None,
    one_at_a_time: Annotated[
        bool, typer.Option("--one-at-a-time", help="Of several --vary, each value by itself instead.")
    ] = False,
    equal: Annotated[
        str | None,
        typer.Option(
            "--equal",
            help="Hold equal: parameters or flops (a token; widths are adjusted), time (training.minutes), steps.",
            show_default=False,
        ),
    ] = None,
    seeds: SeedsOption = 3,
    confidence: Annotated[float, typer.Option("--confidence", help="Of the intervals.")] = 0.95,
    settings: SetOption = None,
    out: RunsOption = Path("comparison"),
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Is this part really better, or is it noise?

    Trains BASE.toml and its variants over several seeds, and compares them seed by seed, with the same data in the same
    order. What is varied is a part of the model, swapped by name (position, heads, kv_heads, window, feed_forward,
    hidden, experts, top_k, placement, norm, depth), or any key of the recipe (optimizer, learning_rate, model.preset).

    The same command again goes on where it was stopped.
    """
    from anyformer.comparing import compare as run

    result = run(
        base,
        vary or [],
        directory=out,
        seeds=seeds,
        equal=equal,
        one_at_a_time=one_at_a_time,
        overrides=settings or (),
        workers=workers,
        confidence=confidence,
    )
    if as_json:
        print_json(result.to_data())
    else:
        _print(result)
        note(f"the report is {out / 'report.html'}")


def _print(result: Comparison) -> None:
    from rich.markup import escape

    from anyformer.comparing.report import COLUMNS, MEASURES, cells

    table = new_table(MEASURES[result.measure], *COLUMNS, "")
    table.columns[-1].justify = "left"
    styles = {True: "green", False: "red"}
    for row in result.rows:
        found = row.difference
        style = styles[found.mean < 0] if found is not None and found.larger_than_noise else "none"
        table.add_row(escape(row.name), *cells(row), f"[{style}]{row.verdict}[/]")
    print_table(table)
    for row in result.rows:
        if row.adjusted:
            print(f"{row.name}: {row.adjusted}, to hold {result.asked['equal']} equal")
    for each in result.notes:
        print(each)
