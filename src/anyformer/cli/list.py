"""anyformer list: what there is to build with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import StrEnum
from importlib import resources
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from anyformer.cli.common import DebugOption, JsonOption, new_table, note, print_json, print_table

if TYPE_CHECKING:
    from anyformer.spec.base import Part

Rows = list[dict[str, Any]]

#: What was measured of each family beside the reference implementation, in the order of the columns.
PARITY = ("logits", "loss", "gradient norm", "cached logits", "greedy tokens", "tensors both ways")


class What(StrEnum):
    """What can be listed."""

    families = "families"
    presets = "presets"
    parts = "parts"
    kernels = "kernels"


def list_(
    what: Annotated[What | None, typer.Argument(help="Only these.", show_default=False)] = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """List families, presets, the parts of a spec, and the attention kernels with what each can do on this machine.

    Kernels are listed only when asked for by name: torch says what they can do, and takes a while to start.
    """
    listed = {what: LISTS[what]()} if what is not None else {name: LISTS[name]() for name in LISTS if name != "kernels"}
    if as_json:
        print_json({str(name): rows for name, rows in listed.items()})
        return
    for name, rows in listed.items():
        print(f"{name}\n")
        columns = [column for column in rows[0] if column != "paper"]
        table = new_table(*columns)
        for column in table.columns:
            values = [row[str(column.header)] for row in rows]
            column.justify = "right" if any(isinstance(value, int) for value in values) else "left"
        for row in rows:
            shown = {column: _shown(row[column]) for column in columns}
            if "paper" in row:
                shown["title"] = f"[link={row['paper']}]{row['title']}[/link]"
            table.add_row(*shown.values())
        print_table(table)
        print()
    if what is None:
        note("kernels: anyformer list kernels")


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "identical" if value else "DIFFER"
        case float():
            return f"{value:.0e}"
        case int():
            return f"{value:,}"
        case list():
            return ", ".join(value)
        case dict():
            return "; ".join(f"{name}: {reason}" for name, reason in value.items())
        case _:
            return str(value)


def families() -> Rows:
    """Each family with what it reads, and how far it is from the reference implementation: the largest difference over
    the largest reference as `benchmarks/parity.py` measured it; None where there is nothing to compare, empty where
    nobody has measured."""
    from anyformer.families import registered

    measured = parity()["families"]
    return [
        {
            "family": name,
            "title": family.title,
            "sizes": list(family.presets),
            "reads": list(family.model_types),
            "gguf": list(family.gguf.architectures) if family.gguf is not None else [],
            **{column: measured.get(name, {}).get(column, "") for column in PARITY},
            "paper": family.paper,
        }
        for name, family in registered().items()
    ]


def parity() -> dict[str, Any]:
    """What `benchmarks/parity.py` measured, and beside what: `families` has the figures of each by `PARITY`."""
    return json.loads(resources.files("anyformer.families").joinpath("parity.json").read_text(encoding="utf-8"))


def presets() -> Rows:
    """Each preset with its size."""
    from anyformer.families import registered
    from anyformer.planning import count, kv_bytes

    rows = []
    for name, family in registered().items():
        for size in family.presets:
            spec = family(size)
            rows.append(
                {
                    "preset": f"{name}:{size}",
                    "parameters": count(spec),
                    "shape": spec.shape,
                    "layers": max(stack.depth for stack in spec.stacks().values()),
                    "context": spec.context or "",
                    "KV bytes/token": kv_bytes(spec, 1) or "",
                }
            )
    return rows


def parts() -> Rows:
    """Each part that a spec can name, with the first sentence of what it says of itself; then what parts choose of."""
    from anyformer import families, spec
    from anyformer.spec import mixers, positions, transformer

    families.registered()  # some have mixers of their own

    kinds = {
        "mixer": mixers.registered_mixers(),
        "position in attention": _members(positions.AttentionPosition),
        "rotary scaling": _members(positions.RotaryScaling),
        "position in embeddings": _members(positions.EmbeddingPosition),
        "head": _members(transformer.Head),
    }
    choices = {
        "norm": get_args(spec.Norm.model_fields["kind"].annotation),
        "placement of a norm": get_args(transformer.Placement),
        "activation": get_args(mixers.Activation),
        "visibility": get_args(spec.Attention.model_fields["visibility"].annotation),
    }
    named = [
        {"part": kind, "name": part.model_fields["kind"].default, "what it is": _first_sentence(part)}
        for kind, members in kinds.items()
        for part in members
    ]
    return named + [{"part": part, "name": list(names), "what it is": ""} for part, names in choices.items()]


def _members(annotated: Any) -> tuple[type[Part], ...]:
    """The classes of Annotated[A | B, ...]."""
    union = get_args(annotated)[0]
    return get_args(union) or (union,)


def _first_sentence(documented: object) -> str:
    paragraph = re.split(r"\n\n|\n- |:\n", cleandoc(documented.__doc__ or ""))[0]
    return re.split(r"\.(?= [A-Z`]|$)", " ".join(paragraph.split()))[0]


def kernels() -> Rows:
    """Each attention kernel with what it can do here: its own answer, asked with a small case of each."""
    import torch

    from anyformer.model.building import best_device
    from anyformer.parts.kernels import KERNELS, Scores
    from anyformer.parts.masks import Causal, Tokens, Valid, Window, lower
    from anyformer.parts.positions import alibi_bias

    device = best_device()
    heads = torch.zeros(1, 2, 8, 4, device=device)
    tokens = Tokens(8, device=device, start=0)
    padded = Tokens(8, device=device, start=0, valid=torch.arange(8, device=device)[None] > 1)
    causal, window = lower(Causal(), tokens, tokens), lower(Causal() & Window(3), tokens, tokens)
    plain = Scores(0.5)
    # What is done to scores is asked for in a window, where every kernel can be.
    cases = {
        "causal": (heads, causal, plain),
        "window": (heads, window, plain),
        "padding": (heads, lower(Causal() & Valid(), padded, padded), plain),
        "bias": (heads, window, Scores(0.5, bias=alibi_bias(2, 8.0))),
        "soft cap": (heads, window, Scores(0.5, soft_cap=5.0)),
        "sinks": (heads, window, Scores(0.5, sinks=torch.zeros(2, device=device))),
        "dropout": (heads, window, Scores(0.5, dropout=0.1)),
        "gradients": (heads.clone().requires_grad_(), window, plain),
    }
    rows = []
    for name, kernel in KERNELS.items():
        answers = {case: kernel.limits(q, q, visible, scores) for case, (q, visible, scores) in cases.items()}
        rows.append(
            {
                "kernel": name,
                "what it is": _first_sentence(kernel),
                "can": [case for case, reason in answers.items() if reason is None],
                "cannot": {case: reason for case, reason in answers.items() if reason is not None},
            }
        )
    return rows


LISTS: dict[str, Callable[[], Rows]] = {"families": families, "presets": presets, "parts": parts, "kernels": kernels}
