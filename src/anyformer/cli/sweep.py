"""anyformer sweep: sizes of an architecture over budgets, for IsoFLOP curves and a scaling law of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from anyformer.errors import ExperimentError


def sweep(
    base: BaseArgument,
    budgets: Annotated[
        str, typer.Option("--budgets", metavar="C,C,...", help="FLOPs, such as 1e12,3e12.", show_default=False)
    ],
    sizes: Annotated[int, typer.Option("--sizes", min=1, help="Sizes of each budget; five make a curve.")] = 5,
    span: Annotated[float, typer.Option("--span", help="The largest size over the smallest.")] = 16.0,
    seeds: SeedsOption = 1,
    settings: SetOption = None,
    out: RunsOption = Path("sweep"),
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """How large should a model be for its budget? IsoFLOP curves of one's own.

    For each budget, trains BASE.toml's architecture at a ladder of sizes around the compute-optimal one, each on the
    tokens that spend the budget (C = 6·N·D). The same command again goes on where it was stopped; then a law:

    anyformer plan --fit OUT
    """
    from anyformer.comparing import sweep as run

    result = run(
        base,
        _budgets(budgets),
        directory=out,
        sizes=sizes,
        span=span,
        seeds=seeds,
        overrides=settings or (),
        workers=workers,
    )
    if as_json:
        print_json(result.to_data())
        return
    from anyformer.comparing.report import SWEEP_COLUMNS, sweep_cells, sweep_result

    table = new_table(*SWEEP_COLUMNS)
    for each in result.swept:
        table.add_row(*sweep_cells(each))
    print_table(table)
    print(sweep_result(result))
    for each in result.notes:
        print(each)
    note(f"the report is {out / 'report.html'}; a law of these runs: anyformer plan --fit {out}")


def _budgets(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ExperimentError(f"--budgets {text} are no numbers of FLOPs; write them as 1e12,3e12") from None
