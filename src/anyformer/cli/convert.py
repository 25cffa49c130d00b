"""anyformer convert: a checkpoint from one format to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyformer.cli.common import (
    DebugOption,
    Dtype,
    ModelArgument,
    ThreadsOption,
    new_table,
    note,
    open_model,
    open_reader,
    print_table,
    waiting,
)
from anyformer.errors import CheckpointError, InputError

if TYPE_CHECKING:
    from anyformer.parts.blocks import Blocks
    from anyformer.parts.blocks import Format as BlockFormat


class Format(StrEnum):
    """What can be written."""

    huggingface = "huggingface"
    anyformer = "anyformer"
    gguf = "gguf"


class Type(StrEnum):
    """What the matrices of a GGUF file can be in."""

    f32 = "f32"
    f16 = "f16"
    bf16 = "bf16"
    q8_0 = "q8_0"
    q6_k = "q6_k"
    q4_k = "q4_k"
    q4_1 = "q4_1"
    q4_0 = "q4_0"


#: What of an evaluation is a loss, and how it is called.
LOSSES = {"loss": "loss (nats/token)", "perplexity": "perplexity", "bits_per_byte": "bits/byte"}
FLOATS = {Type.f32: Dtype.float32, Type.f16: Dtype.float16, Type.bf16: Dtype.bfloat16}


def convert(
    model: ModelArgument,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The directory, or the .gguf file, to write.", show_default=False)
    ],
    to: Annotated[
        Format | None,
        typer.Option(
            "--to",
            help="huggingface: a directory that other tools load; anyformer: also what no other tool can load; "
            "gguf: a file for llama.cpp. By the name of OUT unless given.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option(
            "--dtype",
            help="The numbers' type; that of the file (float32 if quantised) unless given.",
            show_default=False,
        ),
    ] = None,
    type_: Annotated[
        Type | None,
        typer.Option(
            "--type",
            help="What the matrices of a GGUF file are in: floats, or blocks of 8, 6 or 4 bits a number. "
            "As the file has them unless given.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            "--text", help="Texts to measure the loss on, before and after: a file, folder or glob.", show_default=False
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the model that OUT holds.")] = False,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a model as a directory that other tools load, or as a GGUF file.

    A directory holds config.json, safetensors and tokenizer as Hugging Face has them, and spec.json. A GGUF file holds
    all in one, its matrices in the --type asked for; those that are in it already are copied as they are. The tables of
    tokens keep six or eight bits beside matrices of four, and rows that are no whole blocks (256 numbers for q4_k and
    q6_k, else 32) take the nearest type that fits.

    Everything is written aside and moved into place, so that OUT never holds half a model.
    """
    to = to or (Format.gguf if out.suffix == ".gguf" else Format.huggingface)
    if to is Format.gguf and out.is_dir():
        raise CheckpointError(f"{out} is a directory; name the file to write, such as {out / 'model.gguf'}")
    if to is not Format.gguf and out.is_file():
        raise CheckpointError(f"{out} is a file; name a directory to write, or --to gguf")
    if out.exists() and (out.is_file() or any(out.iterdir())) and not force:
        raise CheckpointError(f"{out} is there already and not empty; choose another name, or replace it with --force")
    before = _losses(model, text) if text else {}
    if to is Format.gguf:
        parameters = _write_file(model, out, dtype, type_)
    elif type_ is not None:
        raise InputError(f"--type is for GGUF files; give --dtype for a directory, or name a file: {out}.gguf")
    else:
        parameters = _write_directory(model, out, to, dtype)
    files = [out] if out.is_file() else [path for path in out.iterdir() if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    note(f"{model} -> {out}: {parameters:,} parameters, {size / 1e6:,.1f} MB")
    if text:
        _print_losses({model: before, str(out): _losses(str(out), text)})


def _write_directory(model: str, out: Path, to: Format, dtype: Dtype | None) -> int:
    from anyformer import checkpoints

    loaded = open_model(model, dtype, "cpu")
    if to is Format.huggingface and checkpoints.expressible(loaded.spec, loaded.family) is None:
        raise CheckpointError(
            f"no family's config.json can express {model}, so other tools could not load it; --to anyformer writes it "
            f"with a spec.json alone"
        )
    with waiting(f"writing {out}"):
        loaded.save(out)
    return sum(parameter.numel() for parameter in loaded.parameters())


def _write_file(model: str, out: Path, dtype: Dtype | None, type_: Type | None) -> int:
    if dtype is not None and type_ is not None:
        raise InputError("--type says all about a GGUF file's matrices; leave --dtype out")
    with waiting(f"writing {out}"):
        from anyformer import checkpoints
        from anyformer.parts.blocks import FORMATS
        from anyformer.planning.shapes import count

        format = FORMATS.get(type_.value.upper()) if type_ is not None else None
        source = _source(model, FLOATS.get(type_, dtype) if type_ is not None else dtype)
        kinds = checkpoints.write_gguf(out, **source, format=format, name=Path(model).stem)
    counts = Counter(kinds.values()).most_common()
    note(f"{out} holds tensors in " + ", ".join(f"{kind} ({count})" for kind, count in counts))
    if format is not None:
        if others := _unfit(out, format):
            note(f"{format.elements} numbers are a block of {format.name}: rows of other lengths are in {others}")
        if _format_of(source["blocks"]) not in (None, format):
            note(f"{model} is quantised already, and rounding again loses more; convert what it was made from")
    if source["tokenizer"] is None:
        note(f"{out} holds no vocabulary, for {model} has no tokenizer that is known here")
    return count(source["spec"])


def _source(model: str, dtype: Dtype | None) -> dict[str, Any]:
    """What `write_gguf` is to be told of a model. Its tensors are read one at a time; only a preset's fresh weights are
    a whole model first."""
    from anyformer import checkpoints, families
    from anyformer.model.building import dtype_of

    if families.preset(model) is not None:
        found = open_model(model, dtype, "cpu")
        tensors, blocks = dict(found.named_parameters()), {}
    else:
        found = checkpoints.open(model)
        tensors, blocks = found.tensors, found.blocks if dtype is None else {}
    return {
        "spec": found.spec,
        "tensors": tensors,
        "dtype": found.dtype if dtype is None else dtype_of(dtype.value),
        "blocks": blocks,
        "family": found.family,
        "generation": found.generation,
        "tokenizer": found.tokenizer,
    }


def _format_of(blocks: Mapping[str, Blocks]) -> BlockFormat | None:
    """What layers are in, where they are in blocks."""
    return next((blocks[name].format for name in blocks if ".layers." in name), None)


def _unfit(path: Path, format: BlockFormat) -> str:
    """The types of those matrices of a GGUF file whose rows are no whole blocks of a format."""
    from anyformer.checkpoints.gguf import GgufFile

    matrices = [each for each in GgufFile(path).tensors.values() if len(each.shape) > 1]
    return ", ".join(sorted({each.type for each in matrices if not format.fits(each.shape[-1])}))


def _losses(model: str, text: list[str]) -> dict[str, float]:
    """Loss, perplexity and bits a byte of a model on texts, such of them as its objective has."""
    from anyformer import families

    if families.preset(model) is not None:
        raise InputError(f"{model} is a preset, whose fresh weights are drawn anew each time; leave --text out")
    from anyformer.data import find_files
    from anyformer.inspection.evaluation.reporting import Data, report

    loaded = open_reader(model, device="cpu", quantize=None)
    with waiting(f"reading texts with {model}"):
        found = report(loaded, Data(find_files(text)))
    return {name: found[name] for name in LOSSES if name in found}


def _print_losses(found: dict[str, dict[str, float]]) -> None:
    """The losses before and after, and the change."""
    before, after = found.values()
    table = new_table("", *(LOSSES[name] for name in before))
    for model, losses in found.items():
        table.add_row(model, *(f"{loss:.4f}" for loss in losses.values()))
    table.add_row("change", *(f"{after[name] / loss - 1:+.2%}" for name, loss in before.items()))
    print_table(table)
