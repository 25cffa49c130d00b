"""anyformer chat: a conversation in the terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from anyformer.cli import settings
from anyformer.cli.common import (
    DebugOption,
    DeviceOption,
    DtypeOption,
    ModelArgument,
    QuantizeOption,
    ThreadsOption,
    open_reader,
)
from anyformer.errors import AnyformerError, InputError

if TYPE_CHECKING:
    from anyformer.model import Transformer
    from anyformer.parts.cache import Cache

#: The longest answer unless told otherwise, in tokens.
LONGEST_ANSWER = 1024
HELP = '/reset begins anew · /exit or Ctrl-D leaves · Ctrl-C stops an answer · """ around several lines makes them one'
#: What stands before and after a message of several lines.
QUOTES = '"""'


class Conversation:
    """Messages so far, and a cache that holds what the model has read and written of them. Raises `InputError` for
    settings that cannot be used, `TextError` for a system message that the template refuses.

    Each turn renders the whole conversation by the model's own template. Where its ids go on from those in the cache,
    only the rest is read; where they do not (a template that rewrites earlier turns, an answer that would be cut into
    other tokens), all of it is, so that the answer is the same either way.
    """

    def __init__(self, model: Transformer, system: str | None = None, **settings: Any) -> None:
        # A search that a file asks for has no next token before it is over.
        one = {"answers": 1, "beams": 1, "penalty_alpha": 0.0}
        self.model, self.settings = model, model.settings(**settings).model_copy(update=one)
        self.opening = [{"role": "system", "content": system}] if system is not None else []
        self.reset()
        if self.opening:
            # A template that knows no system message says so now, and not after the first question.
            self._rendered([*self.opening, {"role": "user", "content": "?"}])

    def reset(self) -> None:
        """Forget all that was said."""
        self.messages: list[dict[str, str]] = list(self.opening)
        self.cache: Cache | None = None
        self.held: list[int] = []

    def say(self, text: str) -> Generator[str]:
        """The answer to a message, piece by piece. What was answered when the iterator is closed or interrupted stays
        in the conversation; a message that cannot be read at all does not."""
        import torch

        from anyformer.generation import Prompts, Writing, decode

        tokenizer, chosen = self.model.tokenizer, self.settings
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = self._rendered(messages)
        unread = self._unread(ids, chosen.prompt_lookup, chosen.quantize_cache)
        prompts = Prompts(torch.tensor([unread], device=self.model.device), past=ids[: -len(unread)])
        row, pieces, whole = Writing(chosen, tokenizer), [], False
        try:
            for step in decode(self.model, prompts, chosen, tokenizer, cache=self.cache):
                ids.append(int(step.ids_B))
                pieces.append(row.push(ids[-1]))
                yield pieces[-1]
                if row.reason is not None:
                    break
            pieces.append(row.finish())
            yield pieces[-1]
            whole = True
        finally:
            if pieces:
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]
            if whole and self.cache is not None:
                if self.cache.length >= len(ids):
                    # What was guessed beyond a stop string.
                    self.cache.truncate([len(ids) - 1])
                self.held = ids[: self.cache.length]
            else:
                # An interrupted pass may have reached some layers' cache and not others'.
                self.cache, self.held = None, []

    def _rendered(self, messages: list[dict[str, str]]) -> list[int]:
        """The ids of a conversation. Raises `TextError` where the template refuses it."""
        tokenizer = self.model.tokenizer
        assert tokenizer is not None
        return tokenizer.encode(tokenizer.chat(messages), special=False)

    def _unread(self, ids: list[int], margin: int, quantize: Literal["int8"] | None) -> list[int]:
        """The ids that the cache does not hold; all of them, with a new cache, where it holds something else."""
        held = len(self.held)
        if self.cache is None or ids[:held] != self.held or held == len(ids):
            self.cache, held = self.model.new_cache(1, margin=margin, quantize=quantize), 0
        return ids[held:]


@settings.generating(*settings.SEARCH, "batch_invariant", max_new_tokens=LONGEST_ANSWER)
def chat(
    context: typer.Context,
    model: ModelArgument,
    system: Annotated[
        str | None, typer.Option("--system", help="What the model is told before all else.", show_default=False)
    ] = None,
    dtype: DtypeOption = None,
    quantize: QuantizeOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    debug: DebugOption = False,
    **options: Any,
) -> None:
    """Hold a conversation, with the model's own chat template.

    /reset begins anew, /exit or Ctrl-D leaves, Ctrl-C stops an answer; three quotes before and after several lines make
    them one message. Without a terminal, each line of standard input is a message and each answer goes to standard
    output.
    """
    loaded = open_reader(model, dtype, device, quantize)
    if loaded.decoder is None or loaded.encoder is not None or loaded.spec.head.kind != "language_model":
        raise InputError(f"{model} is no decoder with a language-model head, so it cannot hold a conversation")
    if loaded.tokenizer is None or loaded.tokenizer.chat_template is None:
        raise InputError(f"{model} has no chat template; continue plain text instead: anyformer generate {model} TEXT")
    conversation = Conversation(loaded, system, **settings.given(context))
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  (input() then has line editing and history)
        print(f"{model} · {HELP}")
    for message in _messages():
        if message == "/exit":
            return
        if message == "/reset":
            conversation.reset()
        elif re.fullmatch(r"/\w+", message):
            _not_a_command(message)
        elif message:
            _answer(conversation, message)


def _messages() -> Iterator[str]:
    """What the user says, until the end of input."""
    talks = sys.stdin.isatty()
    while True:
        try:
            yield _message(talks)
        except EOFError:
            if talks:
                print()
            return
        except KeyboardInterrupt:
            if not talks:
                raise
            print(f"\n{HELP}")


def _message(talks: bool) -> str:
    """A line; or what stands between QUOTES, or between these and the end of input, in as many lines as it takes."""
    said = input("\n> " if talks else "").strip()
    if not said.startswith(QUOTES):
        return said
    said = said.removeprefix(QUOTES)
    with suppress(EOFError):
        while not said.endswith(QUOTES):
            said += "\n" + input(". " if talks else "").rstrip()
    return said.removesuffix(QUOTES).strip()


def _not_a_command(message: str) -> None:
    """Says so: one that is mistyped is not meant for the model."""
    if not sys.stdin.isatty():
        raise InputError(f"there is no command {message}; {HELP}")
    print(f"(there is no command {message}; {HELP})")


def _answer(conversation: Conversation, message: str) -> None:
    talks = sys.stdin.isatty()
    try:
        with closing(conversation.say(message)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not talks:
            raise
        print(" …", end="")
    except AnyformerError as error:
        if not talks:
            raise
        print(f"({error}; {HELP})", end="")
    print(flush=True)
