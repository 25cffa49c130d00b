"""anyformer convert: a checkpoint from one format to another."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from anyformer.cli.common import DebugOption, Dtype, ModelArgument, ThreadsOption, note, open_model, waiting
from anyformer.errors import CheckpointError


class Format(StrEnum):
    """What can be written."""

    huggingface = "huggingface"
    anyformer = "anyformer"


def convert(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The directory to write.", show_default=False)],
    to: Annotated[
        Format,
        typer.Option(
            "--to",
            help="huggingface: a directory that other tools load; anyformer: also what no other tool can load.",
        ),
    ] = Format.huggingface,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype",
            help="The numbers' type; that of the file (float32 if quantised) unless given.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that OUT holds.")] = False,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a model as a directory that other tools load.

    It holds config.json, safetensors and tokenizer as Hugging Face has them, and spec.json.

    Everything is written aside and moved into place, so that OUT never holds half a model.
    """
    from anyformer import checkpoints

    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise CheckpointError(
            f"{out} is there already and not empty; choose another directory, or replace it with --force"
        )
    loaded = open_model(model, dtype, "cpu")
    if to is Format.huggingface and checkpoints.expressible(loaded.spec, loaded.family) is None:
        raise CheckpointError(
            f"no family's config.json can express {model}, so other tools could not load it; --to anyformer writes it "
            f"with a spec.json alone"
        )
    with waiting(f"writing {out}"):
        loaded.save(out)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    note(f"{model} -> {out}: {sum(p.numel() for p in loaded.parameters()):,} parameters, {size / 1e6:,.1f} MB")
