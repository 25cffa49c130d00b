"""anyformer evaluate: how good a model is at what it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyformer.cli import settings
from anyformer.cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    EncodingOption,
    JsonOption,
    ModelArgument,
    Quantize,
    QuantizeOption,
    ThreadsOption,
    new_table,
    open_reader,
    print_json,
    print_table,
    progress,
    waiting,
)
from anyformer.errors import InputError

if TYPE_CHECKING:
    from anyformer.model import Transformer

#: What figures are called for people, where their names do not say it.
TITLES = {
    "loss": "loss (nats/token)",
    "bits_per_byte": "bits/byte",
    "macro_f1": "F1, mean over labels",
    "f1": "F1",
    "bleu": "BLEU",
    "chrf": "chrF",
}
#: The order of the columns of texts.
OF_TEXTS = ("tokens", "bytes", "loss", "perplexity", "bits_per_byte")


@settings.generating("answers")
def evaluate(
    context: typer.Context,
    model: ModelArgument,
    data: Annotated[
        list[str] | None, typer.Argument(help="Files of texts or records, folders or globs.", show_default=False)
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option("--objective", help="What is asked: as head, shape and data say.", show_default=False),
    ] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, help="Tokens read at a time: the context, at most 2048.", show_default=False),
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", min=1, help="How far the window moves: half of it.", show_default=False)
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", help="What the data calls a field: source=1, text=content.", show_default=False),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Take so many documents only, the first.", show_default=False)
    ] = None,
    last: Annotated[
        int | None, typer.Option("--last", min=1, help="Take so many documents only, the last.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is hidden or cut out, and of draws.")] = 0,
    samples: Annotated[int, typer.Option("--samples", min=0, help="How many answers to show.")] = 3,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Tasks of lm-eval, commas between them.", show_default=False)
    ] = None,
    task_folder: Annotated[
        str | None, typer.Option("--task-folder", help="Where tasks of your own stand, as YAML.", show_default=False)
    ] = None,
    shots: Annotated[
        int | None, typer.Option("--shots", min=0, help="Solved examples before each question.", show_default=False)
    ] = None,
    encoding: EncodingOption = None,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
    **options: Any,
) -> None:
    """Measure a model on texts, on records, or on lm-eval's tasks.

    Texts, of a decoder: loss, perplexity and bits per byte, every token scored exactly once; a text longer than the
    window is read in windows that overlap. Texts, of others: loss and accuracy of what is hidden in them. Records of
    text and label: accuracy and F1. Pairs of source and target: loss, and BLEU and chrF of the answers.

    With --quantize the same is measured of the model before it is quantised, and both stand beside their bytes.
    """
    if limit is not None and last is not None:
        raise InputError("--limit takes the first documents and --last the last: give one of them")
    if bool(data) == bool(tasks):
        raise InputError("name data to evaluate on, or tasks of lm-eval with --tasks")
    asked = {name: value for name, value in settings.given(context).items() if name != "seed"}
    if tasks and asked:
        raise InputError(f"tasks of lm-eval say themselves how they are answered: leave out {', '.join(asked)}")
    if tasks:
        from anyformer.inspection.evaluation.answering import needed

        with waiting("starting lm-eval"):
            needed("lm_eval")
        from anyformer.inspection.evaluation.harness import run_tasks

        names = [task.strip() for task in tasks.split(",")]

        def measured(found: Transformer) -> dict[str, Any]:
            return {"tasks": run_tasks(found, names, directory=task_folder, shots=shots, limit=limit)}
    else:
        from anyformer.data import find_files
        from anyformer.inspection.evaluation.reporting import Data, report

        read = Data(find_files(data or []), tuple(encoding or ["utf-8"]), dict(map(_named, column or [])), limit, last)

        def measured(found: Transformer) -> dict[str, Any]:
            with progress() as bars:

                def bar(name: str) -> Any:
                    task = bars.add_task(name, total=None)
                    return lambda done, total: bars.update(task, completed=done, total=total, visible=done < total)

                return report(
                    found,
                    read,
                    objective,
                    window=window,
                    stride=stride,
                    seed=seed,
                    samples=samples,
                    bars=bar,
                    **asked,
                )

    before: dict[str, Any] = {}
    if quantize not in (None, Quantize.none):
        whole = open_reader(model, dtype, device)
        before = {"unquantized": {**measured(whole), "weights": _weights(whole)}}
        del whole  # the two need not stand in memory together
    found = open_reader(model, dtype, device, quantize)
    said = {**measured(found), "weights": _weights(found), **before}
    if as_json:
        print_json({"model": model, **said})
    else:
        if before:
            print(f"{model}, {said['unquantized']['weights']:,} bytes of weights\n")
            _print(before["unquantized"])
            print(f"\n{found.quantization}, {said['weights']:,} bytes\n")
        _print(said)


def _weights(model: Transformer) -> int:
    """The bytes of a model's parameters and blocks."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def _named(column: str) -> tuple[str, str | int]:
    """A field and what the data calls it, of `field=column`."""
    name, equals, called = column.partition("=")
    if not (name and equals and called):
        raise InputError(f"--column {column} does not say what is called what; write it as source=1 or text=content")
    return name, int(called) if called.isdecimal() else called


def _print(said: dict[str, Any]) -> None:
    """Figures as tables, then answers."""
    for task, figures in said.get("tasks", {}).items():
        _print_figures(task, figures)
    if "files" in said:
        everything = {"all": said} if len(said["files"]) > 1 else {}
        _print_rows("file", {**said["files"], **everything}, OF_TEXTS)
    elif "objective" in said:
        if "labels" in said:
            stretches = {"stretches": said["stretches"]} if "stretches" in said else {}
            _print_rows("label", {**said["labels"], **stretches}, ("precision", "recall", "f1", "count"))
            print()
        _print_figures(said["objective"], {name: each for name, each in said.items() if isinstance(each, int | float)})
    for sample in said.get("samples", []):
        print(f"\n  source  {sample['source']}\n  wanted  {sample['target']}\n  answer  {sample['answer']}")


def _print_figures(title: str, figures: dict[str, float]) -> None:
    table = new_table(title, "")
    for name, figure in figures.items():
        table.add_row(TITLES.get(name, name.replace("_", " ")), _written(name, figure))
    print_table(table)


def _print_rows(title: str, rows: dict[str, dict[str, float]], columns: tuple[str, ...]) -> None:
    table = new_table(title, *(TITLES.get(column, column) for column in columns))
    for name, figures in rows.items():
        table.add_row(name, *(_written(column, figures[column]) for column in columns))
    print_table(table)


def _written(name: str, figure: float) -> str:
    if isinstance(figure, int):
        return f"{figure:,}"
    return f"{figure:,.2f}" if name in ("perplexity", "bleu", "chrf") else f"{figure:.4f}"
