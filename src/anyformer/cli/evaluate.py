"""anyformer evaluate: how well a language model predicts texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from anyformer.cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    EncodingOption,
    JsonOption,
    ModelArgument,
    ThreadsOption,
    new_table,
    open_reader,
    print_json,
    print_table,
    progress,
)

if TYPE_CHECKING:
    from anyformer.inspection.evaluation import Evaluation


def evaluate(
    model: ModelArgument,
    files: Annotated[list[str], typer.Argument(help="Text files, folders or globs.", show_default=False)],
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, help="Tokens read at a time: the context, at most 2048.", show_default=False),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="How far the window moves: half of it.", show_default=False)
    ] = None,
    encoding: EncodingOption = None,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Measure loss, perplexity and bits per byte over texts, every token scored exactly once.

    A text longer than the window is read in windows that overlap, so that tokens have at least window - stride tokens
    before them.
    """
    from anyformer.data import find_files, read_documents
    from anyformer.inspection import evaluation

    documents = list(read_documents(find_files(files), tuple(encoding or ["utf-8"])))
    loaded = open_reader(model, dtype, device)
    results: dict[str, Evaluation] = {}
    with progress() as bars:
        for document in documents:
            task = bars.add_task(document.name, total=None)
            results[document.name] = evaluation.evaluate(
                loaded,
                document.text,
                window=window,
                stride=stride,
                progress=lambda done, tokens, task=task: bars.update(task, completed=done, total=tokens),
            )
            bars.remove_task(task)
    total = sum(results.values(), evaluation.Evaluation())
    if as_json:
        print_json(
            {"model": model, **_figures(total), "files": {name: _figures(each) for name, each in results.items()}}
        )
    else:
        _print_table(results, total)


def _figures(evaluation: Evaluation) -> dict[str, float]:
    names = ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")
    return {name: getattr(evaluation, name) for name in names}


def _print_table(results: dict[str, Evaluation], total: Evaluation) -> None:
    rows = [*results.items(), *([("all", total)] if len(results) > 1 else [])]
    table = new_table("file", "tokens", "bytes", "loss (nats/token)", "perplexity", "bits/byte")
    for name, each in rows:
        figures = (f"{each.loss:.4f}", f"{each.perplexity:,.2f}", f"{each.bits_per_byte:.4f}")
        table.add_row(name, f"{each.tokens:,}", f"{each.bytes:,}", *figures)
    print_table(table)
