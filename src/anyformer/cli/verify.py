"""anyformer verify: the contract, tried on a model."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from anyformer.cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ThreadsOption,
    new_table,
    open_model,
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from anyformer.inspection import Check


def verify(
    model: ModelArgument,
    against_transformers: Annotated[
        bool,
        typer.Option("--transformers/--no-transformers", help="Compare with transformers too, where it is installed."),
    ] = True,
    seed: Annotated[int, typer.Option("--seed", help="Of the random ids that are asked.")] = 0,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Try the contract on a model: is its answer the same however it is computed?

    Every kernel against the reference, cached against uncached, padded, packed, in chunks, saved and loaded again, and
    against transformers. Leaves with exit code 1 if any answer differs.
    """
    from anyformer import inspection

    loaded = open_model(model, dtype, device)
    with progress() as bars:
        task = bars.add_task("", total=None)
        checks = inspection.verify(
            loaded,
            against_transformers=against_transformers,
            seed=seed,
            progress=lambda name: bars.update(task, description=name),
        )
    if as_json:
        print_json({"model": model, "checks": [asdict(check) for check in checks]})
    else:
        _print_table(checks)
    if any(check.verdict == "differs" for check in checks):
        raise typer.Exit(1)


def _print_table(checks: list[Check]) -> None:
    styles = {"same": "green", "differs": "bold red", "skipped": "dim"}
    table = new_table("", "largest difference", "allowed", "verdict", "")
    table.columns[-1].justify = "left"
    for check in checks:
        figures = ("" if figure is None else f"{figure:.1e}" for figure in (check.difference, check.bound))
        table.add_row(check.name, *figures, f"[{styles[check.verdict]}]{check.verdict}[/]", check.note)
    print_table(table)
