"""Answering: the second text of a pair from the first, or what the assistant says in a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from anyformer import spec
from anyformer.data import NO_TARGET, Document, Record, Records
from anyformer.errors import DataError, TextError
from anyformer.text.templates import CHATML, CHATML_TOKENS
from anyformer.training.objectives.objective import (
    Batch,
    Columns,
    Conditional,
    RecordObjective,
    record_batch,
)

if TYPE_CHECKING:
    from anyformer.text import Tokenizer

#: What stands between question and answer where a decoder reads both.
BETWEEN = "\n"


class SequenceToSequence(Conditional, RecordObjective):
    """Say the target of a source, log P(target | source) (Sutskever et al. 2014, eq. 1): translations, summaries,
    answers. A pair with a longer side than the sequence length is left out.

    A decoder reads the source and a line break, so that `generate` is given both.
    """

    name = "seq2seq"
    fields = ("source", "target")
    read: ClassVar[tuple[str, ...]] = ("source", "target")

    @classmethod
    def encoder(
        cls, tokenizer: Tokenizer, model: spec.Transformer, length: int, labels: Sequence[str]
    ) -> Callable[[Sequence[Document]], list[Columns]]:
        between = "" if model.encoder is not None else BETWEEN
        begins = [tokenizer.bos] if model.encoder is None and tokenizer.bos is not None else []
        ends = [tokenizer.eos] if tokenizer.eos is not None else []

        def encode(documents: Sequence[Document]) -> list[Columns]:
            pairs = [(text(document, "source") + between, text(document, "target")) for document in documents]
            sources = tokenizer.encode_batch([source for source, _ in pairs], special=model.encoder is not None)
            targets = tokenizer.encode_batch([target for _, target in pairs], special=False)
            found = [{"source": begins + a, "target": b + ends} for a, b in zip(sources, targets, strict=True)]
            return [each if fits(each, length) else {} for each in found]

        return encode

    def lengths(self, examples: Records) -> tuple[float, float | None]:
        source, target = (float(examples.columns[name].lengths.mean()) for name in self.read)
        return (target, source) if self.has_encoder else (source + target - 1, None)

    def batch(self, records: Sequence[Record], generator: np.random.Generator) -> Batch:
        return self.conditional([(record["source"].tolist(), record["target"].tolist()) for record in records])


class Chat(RecordObjective):
    """Say what the assistant says, in the words of the model's own template: every message is read, and only the
    assistant's tokens, the end of its turn included, are asked for. What is longer than the sequence length is cut.

    A tokenizer without a template gets ChatML's, if its vocabulary has the two tokens or can be given them.
    """

    name, shapes = "chat", ("decoder",)
    fields = ("messages",)

    @classmethod
    def lacking(cls, tokenizer: Tokenizer) -> tuple[dict[str, str], list[str]]:
        begin, end = CHATML_TOKENS
        return ({"eos_token": end}, [begin]) if tokenizer.chat_template is None else ({}, [])

    @classmethod
    def equip(cls, tokenizer: Tokenizer) -> Tokenizer:
        return tokenizer if tokenizer.chat_template is not None else tokenizer.with_chat_template(CHATML)

    @classmethod
    def encoder(
        cls, tokenizer: Tokenizer, model: spec.Transformer, length: int, labels: Sequence[str]
    ) -> Callable[[Sequence[Document]], list[Columns]]:
        def encode(documents: Sequence[Document]) -> list[Columns]:
            return [_asked(tokenizer, document, length) for document in documents]

        return encode

    def batch(self, records: Sequence[Record], generator: np.random.Generator) -> Batch:
        targets = [np.where(record["asked"], record["tokens"], NO_TARGET)[1:] for record in records]
        return record_batch([record["tokens"][:-1] for record in records], targets)


def _asked(tokenizer: Tokenizer, document: Document, length: int) -> Columns:
    """The tokens of a conversation, and which of them the assistant says."""
    messages = conversation(document, "messages")
    roles = dict.fromkeys(message["role"] for message in messages)
    if "assistant" not in roles:
        raise DataError(
            f"{document.name}: no message has the role 'assistant' (there are {', '.join(map(repr, roles))}), and only "
            f"its words are learned; rename the role, or remove the conversation"
        )
    whole = written(tokenizer, document, messages)
    spans = [
        span_of_answer(tokenizer, document, whole, messages[: index + 1])
        for index, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    ids, offsets = tokenizer.encode_with_offsets(whole, special=False)
    asked = [any(begin <= at < end for begin, end in spans) for at, _ in offsets[:length]]
    # A conversation is asked for from its second token on.
    return {"tokens": ids[:length], "asked": asked} if any(asked[1:]) else {}


def conversation(document: Document, field: str) -> list[Mapping[str, Any]]:
    """A field that must be a list of messages, each a text or calls of tools."""
    messages = document.fields[field]
    is_list = isinstance(messages, list) and all(isinstance(message, Mapping) for message in messages)
    if not is_list or not all(isinstance(message.get("role"), str) for message in messages):
        raise DataError(f'{document.name}: {field} must be a list of {{"role": ..., "content": ...}}')
    for number, message in enumerate(messages, 1):
        # A template would write Python's words for what is no text, or nothing at all.
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise DataError(f"{document.name}: message {number} of {field} has no text as its 'content'")
    return messages


def written(
    tokenizer: Tokenizer, document: Document, messages: Sequence[Mapping[str, Any]], *, asks: bool = False
) -> str:
    """A conversation in the words of the model's template, which `asks` for an answer at its end. Raises `DataError`
    naming the record where the template refuses it."""
    try:
        return tokenizer.chat(messages, add_generation_prompt=asks)
    except TextError as error:
        raise DataError(f"{document.name}: {error}") from None


def span_of_answer(
    tokenizer: Tokenizer, document: Document, whole: str, messages: Sequence[Mapping[str, Any]]
) -> tuple[int, int]:
    """Where in a conversation the assistant's last turn of `messages` stands, the token that ends it included."""
    before = written(tokenizer, document, messages[:-1], asks=True)
    after = written(tokenizer, document, messages)
    if not after.startswith(before) or not whole.startswith(after):
        raise DataError(
            f"{document.name}: this model's chat template writes earlier messages anew when later ones follow, so that "
            f"the assistant's words cannot be told apart; split the conversation, one answer a record"
        )
    # What follows the end of a turn, a line break mostly, is the template's and not the assistant's.
    said = after.rstrip()
    ends_turn = any(said.endswith(token) for token in tokenizer.special_tokens.values())
    return len(before), len(said) if ends_turn and len(said) > len(before) else len(after)


def text(document: Document, field: str) -> str:
    """A field that must be a text."""
    value = document.fields[field]
    if not isinstance(value, str):
        raise DataError(f"{document.name}: '{field}' must be a text, not {value!r}")
    return value


def fits(columns: Columns, length: int) -> bool:
    """Whether every column has at least one id and at most `length`."""
    return all(0 < len(ids) <= length for ids in columns.values())
