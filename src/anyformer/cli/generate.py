"""anyformer generate: continue a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyformer.cli import settings
from anyformer.cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    QuantizeOption,
    ThreadsOption,
    note,
    open_reader,
    print_json,
    standard_input,
)
from anyformer.errors import InputError

if TYPE_CHECKING:
    from anyformer.model import Transformer


def generate(
    context: typer.Context,
    model: ModelArgument,
    prompt: Annotated[
        str, typer.Argument(help="What to continue; - reads it from standard input.", show_default=False)
    ],
    max_new_tokens: settings.MaxNewTokens = None,
    min_new_tokens: settings.MinNewTokens = None,
    temperature: settings.Temperature = None,
    top_k: settings.TopK = None,
    top_p: settings.TopP = None,
    min_p: settings.MinP = None,
    typical_p: settings.TypicalP = None,
    seed: settings.Seed = None,
    repetition_penalty: settings.RepetitionPenalty = None,
    frequency_penalty: settings.FrequencyPenalty = None,
    presence_penalty: settings.PresencePenalty = None,
    no_repeat_ngram: settings.NoRepeatNgram = None,
    penalty_alpha: settings.PenaltyAlpha = None,
    beams: settings.Beams = None,
    beam_groups: settings.BeamGroups = None,
    diversity_penalty: settings.DiversityPenalty = None,
    length_penalty: settings.LengthPenalty = None,
    early_stopping: settings.Early = None,
    answers: settings.Answers = None,
    stop: settings.Stop = None,
    json_schema: settings.JsonSchema = None,
    regex: settings.Regex = None,
    grammar: settings.Grammar = None,
    prompt_lookup: settings.PromptLookup = None,
    quantize_cache: settings.QuantizeCache = None,
    batch_invariant: settings.BatchInvariant = None,
    draft: settings.Draft = None,
    logprobs: settings.Logprobs = None,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Continue a prompt, as it comes (an encoder-decoder answers it).

    What is not given is as the checkpoint says, and greedy where that says nothing. Beam search, and several answers,
    come all at once, an answer a line. --json gives the ids, their log-probabilities and why an answer ends as well,
    and how many of the tokens that --draft or --prompt-lookup guessed were right.
    """
    from anyformer.generation import Tally

    text = standard_input() if prompt == "-" else prompt
    loaded = open_reader(model, dtype, device, quantize)
    if loaded.decoder is None:
        raise InputError(f"{model} is an encoder: it reads and does not write; it can embed: anyformer embed {model}")
    if logprobs and not as_json:
        raise InputError("--logprobs are shown as JSON alone; add --json")
    given, tally = settings.given(context), Tally()
    guessing = {"draft": None if draft is None else open_reader(draft, dtype, device), "tally": tally}
    if as_json:
        said = {"model": model, "prompt": text, **_answered(loaded, text, **given, **guessing), "settings": given}
        print_json({**said, "speculation": tally.plain()} if tally.passes else said)
        return
    if loaded.settings(**given).answers > 1:
        print("\n".join(loaded.generate([text], **given, **guessing)))
    else:
        for piece in loaded.stream(text, **given, **guessing):
            print(piece, end="", flush=True)
        print()
    if tally.passes:
        note(f"{tally.accepted} of {tally.proposed} guessed tokens were right: {tally.said / tally.passes:.1f} a pass")


def _answered(model: Transformer, prompt: str, **given: Any) -> dict[str, Any]:
    """All there is to say of the answer, and of the others where several were asked for."""
    first, *others = (answer.plain() for answer in model.answers([prompt], **given) if answer.ids)
    return {**first, "answers": [first, *others]} if others else first
