"""anyformer generate: continue a prompt."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anyformer.cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    JsonOption,
    ModelArgument,
    ThreadsOption,
    open_reader,
    print_json,
    standard_input,
)
from anyformer.errors import InputError

MaxNewTokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "-n", min=1, help="The most tokens to add.", show_default=False)
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", "-t", min=0, help="0 always takes the likeliest token.", show_default=False),
]
TopK = Annotated[
    int | None, typer.Option("--top-k", min=0, help="Draw among the k likeliest only.", show_default=False)
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", min=0, max=1, help="Draw among the fewest that hold probability p.", show_default=False),
]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", min=0, max=1, help="Draw among those at least p times the likeliest.", show_default=False),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option("--repetition-penalty", help="Above 1: avoid what is there.", show_default=False)
]
Beams = Annotated[
    int | None,
    typer.Option("--beams", min=1, help="Above 1: search for the likeliest answer, so wide.", show_default=False),
]
LengthPenalty = Annotated[
    float | None,
    typer.Option("--length-penalty", help="Above 0: the search favours long answers (1).", show_default=False),
]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed draws the same text.", show_default=False)]


def generate(
    model: ModelArgument,
    prompt: Annotated[
        str, typer.Argument(help="What to continue; - reads it from standard input.", show_default=False)
    ],
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    beams: Beams = None,
    length_penalty: LengthPenalty = None,
    answers: Annotated[
        int | None,
        typer.Option("--answers", min=1, help="How many: of the search the best, else draws.", show_default=False),
    ] = None,
    seed: Seed = None,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Continue a prompt, as it comes (an encoder-decoder answers it).

    What is not given is as the checkpoint says, and greedy where that says nothing. Beam search, and several answers,
    come all at once, an answer a line.
    """
    from anyformer.generation import Settings

    text = standard_input() if prompt == "-" else prompt
    loaded = open_reader(model, dtype, device)
    if loaded.decoder is None:
        raise InputError(f"{model} is an encoder: it reads and does not write; it can embed: anyformer embed {model}")
    settings: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "beams": beams,
        "length_penalty": length_penalty,
        "answers": answers,
        "seed": seed,
    }
    texts = [""]
    if Settings.of(loaded.generation, **settings).answers > 1:
        texts = loaded.generate([text], **settings)
        if not as_json:
            print("\n".join(texts))
    else:
        for piece in loaded.stream(text, **settings):
            texts[0] += piece
            if not as_json:
                print(piece, end="", flush=True)
        if not as_json:
            print()
    if as_json:
        given = {name: value for name, value in settings.items() if value is not None}
        several = {"answers": texts} if len(texts) > 1 else {}
        print_json({"model": model, "prompt": text, "text": texts[0], **several, "settings": given})
