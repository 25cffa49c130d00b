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


@settings.generating()
def generate(
    context: typer.Context,
    model: ModelArgument,
    prompt: Annotated[
        str, typer.Argument(help="What to continue; - reads it from standard input.", show_default=False)
    ],
    draft: settings.Draft = None,
    logprobs: settings.Logprobs = None,
    as_json: JsonOption = False,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
    **options: Any,
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
