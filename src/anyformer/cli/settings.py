"""How text is generated, as options of the command line: they are called what the settings are."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

_DRAWING, _AGAIN, _SEARCH, _FORM = "Drawing", "What is there already", "Search", "What it may be"


class CacheType(StrEnum):
    """What keys and values are kept as."""

    int8 = "int8"


class EarlyStopping(StrEnum):
    """When beam search is over."""

    true = "true"
    false = "false"
    never = "never"


MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", min=1, help="The most tokens to add.", show_default=False)
]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature",
        "-t",
        min=0,
        help="0 always takes the likeliest token.",
        show_default=False,
        rich_help_panel=_DRAWING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k", min=0, help="Draw among the k likeliest only.", show_default=False, rich_help_panel=_DRAWING
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        min=0,
        max=1,
        help="Draw among the fewest that hold probability p.",
        show_default=False,
        rich_help_panel=_DRAWING,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        min=0,
        max=1,
        help="Draw among those at least p times the likeliest.",
        show_default=False,
        rich_help_panel=_DRAWING,
    ),
]
TypicalP = Annotated[
    float | None,
    typer.Option(
        "--typical-p",
        min=0,
        max=1,
        help="Draw among the least surprising and least dull that hold probability p.",
        show_default=False,
        rich_help_panel=_DRAWING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed draws the same text.", show_default=False, rich_help_panel=_DRAWING),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", help="Above 1: avoid what is there.", show_default=False, rich_help_panel=_AGAIN
    ),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        "--frequency-penalty",
        help="Above 0: avoid what the answer has said, the more so the oftener.",
        show_default=False,
        rich_help_panel=_AGAIN,
    ),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(
        "--presence-penalty",
        help="Above 0: avoid what the answer has said at all.",
        show_default=False,
        rich_help_panel=_AGAIN,
    ),
]
PenaltyAlpha = Annotated[
    float | None,
    typer.Option(
        "--penalty-alpha",
        min=0,
        max=1,
        help="Above 0: of the top-k, take what is least like what is there.",
        show_default=False,
        rich_help_panel=_AGAIN,
    ),
]
Beams = Annotated[
    int | None,
    typer.Option(
        "--beams",
        min=1,
        help="Above 1: search for the likeliest answer, so wide.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
BeamGroups = Annotated[
    int | None,
    typer.Option(
        "--beam-groups",
        min=1,
        help="Divide the beams into so many groups that differ.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
DiversityPenalty = Annotated[
    float | None,
    typer.Option(
        "--diversity-penalty",
        min=0,
        help="How much a group avoids the tokens of those before it.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option(
        "--length-penalty",
        help="Above 0: the search favours long answers (1).",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
Early = Annotated[
    EarlyStopping | None,
    typer.Option(
        "--early-stopping",
        help="The search is over with as many answers as beams (true), or where no better one is likely (false).",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
Answers = Annotated[
    int | None,
    typer.Option(
        "--answers",
        min=1,
        help="How many: of the search the best, else draws.",
        show_default=False,
        rich_help_panel=_SEARCH,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", help="End before this text; several are possible.", show_default=False, rich_help_panel=_FORM
    ),
]
JsonSchema = Annotated[
    str | None,
    typer.Option(
        "--json-schema",
        metavar="FILE|TEXT",
        help="Answer in JSON that this schema describes.",
        show_default=False,
        rich_help_panel=_FORM,
    ),
]
Regex = Annotated[
    str | None,
    typer.Option(
        "--regex",
        help="Answer what this regular expression matches.",
        show_default=False,
        rich_help_panel=_FORM,
    ),
]
Grammar = Annotated[
    Path | None,
    typer.Option(
        "--grammar",
        help="Answer in the language of the Lark grammar in this file.",
        show_default=False,
        rich_help_panel=_FORM,
    ),
]
PromptLookup = Annotated[
    int | None,
    typer.Option(
        "--prompt-lookup",
        min=0,
        help="Guess so many tokens at a time from what the prompt says: faster, the same text.",
        show_default=False,
    ),
]
BatchInvariant = Annotated[
    bool | None,
    typer.Option(
        "--batch-invariant",
        help="Let no answer depend on the others, to the bit; beyond 512 tokens each is then decoded by itself.",
        show_default=False,
    ),
]
QuantizeCache = Annotated[
    CacheType | None,
    typer.Option(
        "--quantize-cache",
        help="Keep keys and values in 8 bits: half the memory of long contexts, nearly the same text.",
        show_default=False,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="Have a smaller model of the same vocabulary guess tokens: faster, the same text.",
        show_default=False,
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        "--logprobs",
        min=0,
        help="With --json: so many of the likeliest tokens at each place.",
        show_default=False,
    ),
]


def given(context: typer.Context) -> dict[str, Any]:
    """The settings of generation among a command's options, as far as they were given; of a file, what it holds."""
    from anyformer.generation import Settings

    options = {name: value for name, value in context.params.items() if name in Settings.model_fields}
    schema = options.get("json_schema")
    if isinstance(schema, str) and not schema.lstrip().startswith("{"):
        options["json_schema"] = Path(schema)
    return {
        name: value.read_text(encoding="utf-8") if isinstance(value, Path) else value
        for name, value in options.items()
        if value not in (None, (), [])
    }
