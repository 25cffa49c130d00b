"""How text is generated, as options of the command line: they are called what the settings are."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any

import typer

# What is not given is as the checkpoint says, so no default is shown.
_option = partial(typer.Option, show_default=False)
_bounding = partial(_option, rich_help_panel="How long")
_drawing = partial(_option, rich_help_panel="Drawing")
_repeating = partial(_option, rich_help_panel="What is there already")
_searching = partial(_option, rich_help_panel="Search")
_forming = partial(_option, rich_help_panel="What it may be")
_hurrying = partial(_option, rich_help_panel="How fast, and in how much memory")


class CacheType(StrEnum):
    """What keys and values are kept as."""

    int8 = "int8"


class EarlyStopping(StrEnum):
    """When beam search is over."""

    true = "true"
    false = "false"
    never = "never"


MaxNewTokens = Annotated[int | None, _bounding("--max-new-tokens", "-n", min=1, help="The most tokens to add.")]
MinNewTokens = Annotated[int | None, _bounding("--min-new-tokens", min=0, help="The fewest tokens to add.")]
MinLength = Annotated[
    int | None, _bounding("--min-length", min=0, help="The fewest tokens, a decoder's prompt included.")
]
ExponentialDecay = Annotated[
    tuple[int, float] | None,
    _bounding(
        "--exponential-decay", metavar="N F", help="After N tokens, make an end likelier by the factor F with each."
    ),
]
Temperature = Annotated[
    float | None, _drawing("--temperature", "-t", min=0, help="0 always takes the likeliest token.")
]
TopK = Annotated[int | None, _drawing("--top-k", min=0, help="Draw among the k likeliest only.")]
TopP = Annotated[float | None, _drawing("--top-p", min=0, max=1, help="Draw among the fewest that hold probability p.")]
MinP = Annotated[
    float | None, _drawing("--min-p", min=0, max=1, help="Draw among those at least p times the likeliest.")
]
TypicalP = Annotated[
    float | None,
    _drawing(
        "--typical-p", min=0, max=1, help="Draw among the least surprising and least dull that hold probability p."
    ),
]
Seed = Annotated[int | None, _drawing("--seed", help="The same seed draws the same text.")]
RepetitionPenalty = Annotated[float | None, _repeating("--repetition-penalty", help="Above 1: avoid what is there.")]
FrequencyPenalty = Annotated[
    float | None,
    _repeating("--frequency-penalty", help="Above 0: avoid what the answer has said, the more so the oftener."),
]
PresencePenalty = Annotated[
    float | None, _repeating("--presence-penalty", help="Above 0: avoid what the answer has said at all.")
]
NoRepeatNgram = Annotated[
    int | None, _repeating("--no-repeat-ngram", min=0, help="Let no so many tokens in a row stand there twice.")
]
EncoderNoRepeatNgram = Annotated[
    int | None,
    _repeating(
        "--encoder-no-repeat-ngram", min=0, help="Say again no so many tokens in a row of the source, or the prompt."
    ),
]
PenaltyAlpha = Annotated[
    float | None,
    _repeating("--penalty-alpha", min=0, max=1, help="Above 0: of the top-k, take what is least like what is there."),
]
Beams = Annotated[int | None, _searching("--beams", min=1, help="Above 1: search for the likeliest answer, so wide.")]
BeamGroups = Annotated[
    int | None, _searching("--beam-groups", min=1, help="Divide the beams into so many groups that differ.")
]
DiversityPenalty = Annotated[
    float | None,
    _searching("--diversity-penalty", min=0, help="How much a group avoids the tokens of those before it."),
]
LengthPenalty = Annotated[
    float | None, _searching("--length-penalty", help="Above 0: the search favours long answers (1).")
]
Early = Annotated[
    EarlyStopping | None,
    _searching(
        "--early-stopping",
        help="The search is over with as many answers as beams (true), or where no better one is likely (false).",
    ),
]
Answers = Annotated[int | None, _searching("--answers", min=1, help="How many: of the search the best, else draws.")]
Stop = Annotated[list[str] | None, _forming("--stop", help="End before this text; several are possible.")]
JsonSchema = Annotated[
    str | None, _forming("--json-schema", metavar="FILE|TEXT", help="Answer in JSON that this schema describes.")
]
Regex = Annotated[str | None, _forming("--regex", help="Answer what this regular expression matches.")]
Grammar = Annotated[Path | None, _forming("--grammar", help="Answer in the language of the Lark grammar in this file.")]
PromptLookup = Annotated[
    int | None,
    _hurrying(
        "--prompt-lookup",
        min=0,
        help="Guess so many tokens at a time from what the prompt says: faster, the same text.",
    ),
]
BatchInvariant = Annotated[
    bool | None,
    _hurrying(
        "--batch-invariant",
        help="Let no answer depend on the others, to the bit; beyond 512 tokens each is then decoded by itself.",
    ),
]
QuantizeCache = Annotated[
    CacheType | None,
    _hurrying(
        "--quantize-cache",
        help="Keep keys and values in 8 bits: half the memory of long contexts, nearly the same text.",
    ),
]
Draft = Annotated[
    str | None,
    _option(
        "--draft",
        metavar="MODEL",
        help="Have a smaller model of the same vocabulary guess tokens: faster, the same text.",
    ),
]
Logprobs = Annotated[
    int | None, _option("--logprobs", min=0, help="With --json: so many of the likeliest tokens at each place.")
]


#: The options of a verb that generates, each by its setting's name.
OPTIONS: dict[str, Any] = {
    "max_new_tokens": MaxNewTokens,
    "min_new_tokens": MinNewTokens,
    "min_length": MinLength,
    "exponential_decay": ExponentialDecay,
    "temperature": Temperature,
    "top_k": TopK,
    "top_p": TopP,
    "min_p": MinP,
    "typical_p": TypicalP,
    "seed": Seed,
    "repetition_penalty": RepetitionPenalty,
    "frequency_penalty": FrequencyPenalty,
    "presence_penalty": PresencePenalty,
    "no_repeat_ngram": NoRepeatNgram,
    "encoder_no_repeat_ngram": EncoderNoRepeatNgram,
    "penalty_alpha": PenaltyAlpha,
    "beams": Beams,
    "beam_groups": BeamGroups,
    "diversity_penalty": DiversityPenalty,
    "length_penalty": LengthPenalty,
    "early_stopping": Early,
    "answers": Answers,
    "stop": Stop,
    "json_schema": JsonSchema,
    "regex": Regex,
    "grammar": Grammar,
    "prompt_lookup": PromptLookup,
    "quantize_cache": QuantizeCache,
    "batch_invariant": BatchInvariant,
}
Verb = Callable[..., None]
#: Those of a search, which weighs whole answers.
SEARCH = ("penalty_alpha", "beams", "beam_groups", "diversity_penalty", "length_penalty", "early_stopping", "answers")


def generating(*but: str, **defaults: Any) -> Callable[[Verb], Verb]:
    """Gives a command all of OPTIONS beside its own, `but` for some; `given` tells it which were given."""

    def with_options(command: Verb) -> Verb:
        own = signature(command, eval_str=True)
        kept = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name), annotation=option)
            for name, option in OPTIONS.items()
            if name not in but and name not in own.parameters
        ]
        command.__signature__ = own.replace(parameters=[*kept, *more])  # type: ignore[attr-defined]
        return command

    return with_options


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
