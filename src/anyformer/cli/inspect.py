"""anyformer inspect: a model as a person would draw it; with a text, what passes inside while it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from anyformer.cli import settings
from anyformer.cli.common import DebugOption, DeviceOption, Dtype, JsonOption, ModelArgument, ThreadsOption, print_json
from anyformer.cli.looking import look_inside
from anyformer.errors import InputError


def inspect(
    model: ModelArgument,
    context: Annotated[
        int | None,
        typer.Option("--context", min=1, help="Count FLOPs and KV bytes at this many tokens.", show_default=False),
    ] = None,
    dtype: Annotated[
        Dtype | None,
        typer.Option("--dtype", help="Count bytes in this type; the file's unless given.", show_default=False),
    ] = None,
    quantize_cache: settings.QuantizeCache = None,
    text: Annotated[
        str | None,
        typer.Option("--text", help="Look inside while it reads this; that needs weights.", show_default=False),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="What an encoder-decoder writes; else its own answer.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Where the page of pictures goes; inspect.html unless given.", show_default=False),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Draw a model: stacks, blocks, parts, shapes, and what it costs. Reads no weights.

    With --text, look inside while it reads: what each layer would answer, where heads look, how long its vectors are;
    and a page of pictures (--out).
    """
    if text is not None:
        look_inside(model, text, target, out, dtype, device, as_json)
        return
    if target is not None or out is not None:
        raise InputError("--target and --out belong to --text; give a text to look at")
    from anyformer import families, planning

    spec, origin = families.preset(model), {"kind": "preset"}
    if spec is None:
        spec, origin = _open(model)
    kept = quantize_cache and quantize_cache.value
    counted = dtype.value if dtype is not None else origin.get("dtype", "bfloat16")
    if as_json:
        facts = {"model": model, "origin": origin, **planning.summary(spec, context, counted, kept)}
        print_json(facts | {"spec": spec.model_dump(mode="json")})
        return
    print(planning.describe(spec, context, counted, kept), end="")
    print(*_origin_lines(model, origin), sep="\n")


def _open(reference: str) -> tuple[Any, dict[str, Any]]:
    """The spec of a checkpoint, and what else its files say."""
    from anyformer import checkpoints

    checkpoint = checkpoints.open(reference)
    tokenizer = checkpoint.tokenizer
    origin: dict[str, Any] = {
        "kind": "checkpoint",
        "reference": checkpoint.origin,
        "family": checkpoint.family,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "tokens": tokenizer.vocabulary_size if tokenizer is not None else None,
        "chat_template": tokenizer is not None and tokenizer.chat_template is not None,
        "generation": checkpoint.generation,
        "passed_over": dict(checkpoint.carried.reasons),
    }
    return checkpoint.spec, origin


def _origin_lines(model: str, origin: dict[str, Any]) -> list[str]:
    from anyformer.families.config import IGNORED

    if origin["kind"] == "preset":
        return [f"from           {model}, a preset: fresh weights"]
    tokens = f"{origin['tokens']:,} tokens" if origin["tokens"] is not None else "none"
    chat = ", with a chat template" if origin["chat_template"] else ""
    lines = [
        f"from           {origin['reference']}, family {origin['family'] or 'none (spec.json alone describes it)'}",
        f"tokenizer      {tokens}{chat}",
    ]
    # Not what every config.json says that is nothing of the model.
    if passed_over := [name for name in origin["passed_over"] if name not in IGNORED]:
        lines.append(f"passed over    {', '.join(passed_over)} (--json says why)")
    return lines
