"""What the verbs share: options, opening models, reading standard input, printing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyformer.cli.process import without_collecting
from anyformer.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress
    from rich.table import Table

    from anyformer.model import Transformer


class Dtype(StrEnum):
    """What a model's numbers can be turned to."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


class Quantize(StrEnum):
    """What a model's matrices can be kept in as it is read."""

    int8 = "int8"
    int4 = "int4"
    keep = "keep"
    none = "none"


def _use_threads(threads: int | None) -> int | None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return threads


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A run directory, a Hugging Face directory, a .gguf file, a hub's org/name[@revision], or a preset.",
        show_default=False,
    ),
]
DtypeOption = Annotated[
    Dtype | None, typer.Option("--dtype", help="The numbers' type; that of the file unless given.", show_default=False)
]
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option(
        "--quantize",
        help="Keep matrices in 8 or 4 bits a number, or as a GGUF file has them; none expands them. Unless given (or "
        "--dtype), what a file holds quantised is kept.",
        show_default=False,
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda, mps ...; auto takes the best there is.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="How many CPU threads to use.", callback=_use_threads, show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a key of the recipe to a TOML value: training.steps=200.",
        show_default=False,
    ),
]
BaseArgument = Annotated[
    str, typer.Argument(metavar="BASE.toml", help="The recipe that everything starts from.", show_default=False)
]
SeedsOption = Annotated[int, typer.Option("--seeds", min=1, help="Runs of each, one a seed.")]
RunsOption = Annotated[Path, typer.Option("--out", "-o", help="Where the runs and the report go.")]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=1,
        help="Runs at a time, each in a process with its share of the threads; one a GPU, else 1, unless given.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
DebugOption = Annotated[
    bool, typer.Option("--debug", help="Show the traceback of an error, and why anything is slower than it could be.")
]
EncodingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--encoding",
        help="The files' text encoding (utf-8 unless given); several are tried in turn.",
        show_default=False,
    ),
]


def open_model(
    reference: str, dtype: Dtype | None = None, device: str = "auto", quantize: Quantize | None = Quantize.none
) -> Transformer:
    """The model that a reference names; with `quantize` None, in its file's own blocks where it has any, unless a dtype
    is asked for."""
    how = "auto" if quantize is None and dtype is None else quantize
    with waiting("starting torch"), without_collecting():
        import torch

        from anyformer import checkpoints, families
        from anyformer.model import load

        try:
            # Making a tensor there finds out what torch only says when it is too late.
            torch.empty(0, device=None if device == "auto" else device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise InputError(f"there is no device '{device}' here; try --device cpu") from None
    # Before the line that spins below, because what is fetched shows bars of its own.
    pinned = reference if families.preset(reference) is not None else checkpoints.fetch(reference)
    with waiting(f"reading {reference}"), without_collecting():
        return load(
            pinned,
            dtype.value if dtype is not None else None,
            device,
            quantize=None if how in (None, Quantize.none) else str(how),
        )


def open_reader(
    reference: str, dtype: Dtype | None = None, device: str = "auto", quantize: Quantize | None = Quantize.none
) -> Transformer:
    """The model that a reference names, to be given text: a preset, which has no tokenizer, reads bytes where its
    vocabulary has room for them."""
    from anyformer import families, text

    model = open_model(reference, dtype, device, quantize)
    if model.tokenizer is None and families.preset(reference) is not None:
        tokenizer = text.byte_level()
        if tokenizer.vocabulary_size <= model.spec.output.embeddings.vocabulary:
            model.tokenizer = tokenizer
            note(f"{reference} is a preset: it reads bytes, and its fresh weights know nothing yet")
    return model


def standard_input() -> str:
    """All of standard input as text. Raises `InputError` where it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 at byte {error.start}; convert it first") from None


def new_table(*columns: str) -> Table:
    """A table of results: a first column of names, then figures, which stand to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def print_table(table: Table) -> None:
    """Print a table, as wide as the terminal; where there is none, wide enough for programs to find their columns."""
    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


def note(text: str) -> None:
    """A remark beside the results, on stderr."""
    print(text, file=sys.stderr)


def print_json(data: Any) -> None:
    """Results as JSON."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something takes a while, on a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{text} ..."):
        yield


@contextmanager
def progress() -> Iterator[Progress]:
    """Bars for long work, on stderr; they leave no trace."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        yield bars
