"""What the trainer needs of an objective, and what objectives share: windows of text, whole records, and conditions
with what is wanted of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.data import (
    NO_TARGET,
    Corpus,
    Document,
    Encode,
    Examples,
    Records,
    Window,
    Windows,
    encode_documents,
    encode_records,
)
from anyformer.errors import DataError, TrainingError
from anyformer.model import Transformer
from anyformer.parts.masks import Tokens

if TYPE_CHECKING:
    from anyformer.text import Tokenizer
    from anyformer.training.recipe import Training

#: The ids of a record by column, and of several.
Columns = Mapping[str, Sequence[int]]
#: Sequences of ids: what is given, and what is wanted of it.
Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class Batch:
    """The inputs of one call of a model, its keyword arguments, and how many targets they hold (known on the host)."""

    inputs: dict[str, Any]
    target_count: int

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {
            name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for name, value in self.inputs.items()
        }
        return Batch(moved, self.target_count)


class Objective:
    """What the trainer needs of one; made for the model that it is to be asked of.

    What concerns data and spec is asked of the class, before there is a model.
    """

    name: ClassVar[str]
    #: The shapes of model that can carry it, and the head that they need.
    shapes: ClassVar[tuple[str, ...]]
    head: ClassVar[str] = "language_model"
    #: The fields of a record that it reads.
    fields: ClassVar[tuple[str, ...]] = ("text",)
    #: Those that it reads besides where `data.columns` says what they are called.
    optional_fields: ClassVar[tuple[str, ...]] = ()
    #: Special tokens that the tokenizer must have, by role; and without one.
    roles: ClassVar[Mapping[str, str]] = {}
    tokens: ClassVar[tuple[str, ...]] = ()
    #: Whether its loss is that of the text itself, so that it amounts to bits a byte.
    is_likelihood: ClassVar[bool] = False
    #: Whether it measures from the model that the run begins with, at every step.
    is_relative: ClassVar[bool] = False

    def __init__(self, model: Transformer) -> None:
        assert model.tokenizer is not None
        self.tokenizer = model.tokenizer

    @classmethod
    def fields_of(cls, columns: Mapping[str, str | int]) -> tuple[str, ...]:
        """The fields of records of which `columns` says what they are called."""
        return (*cls.fields, *(name for name in cls.optional_fields if name in columns))

    def begin(self, settings: Training, start: Callable[[], Transformer]) -> None:
        """Take what it needs of a recipe, and of the model that the run begins with, which `start` makes once more."""

    @classmethod
    def adapt(cls, model: spec.Transformer, labels: int) -> spec.Transformer:
        """The spec with what the objective needs put in (a head of so many `labels`); as it is where nothing is."""
        return model

    @classmethod
    def check(cls, model: spec.Transformer) -> None:
        """Raise `TrainingError` where a model of this spec cannot have this objective."""
        if model.shape not in cls.shapes or model.head.kind != cls.head:
            needed = " or ".join(f"{'an' if shape[0] == 'e' else 'a'} {shape}" for shape in cls.shapes)
            raise TrainingError(
                f"training.objective '{cls.name}' needs {needed} with a {cls.head.replace('_', '-')} head; this model "
                f"is of shape '{model.shape}' with head '{model.head.kind}'"
            )

    @classmethod
    def lacking(cls, tokenizer: Tokenizer) -> tuple[dict[str, str], list[str]]:
        """The special tokens that a tokenizer must be given for it: by role, and others."""
        roles = {role: token for role, token in cls.roles.items() if role not in tokenizer.special_tokens}
        return roles, [token for token in cls.tokens if tokenizer.id_of(token) is None]

    @classmethod
    def equip(cls, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer, which has these tokens, with whatever else it needs."""
        return tokenizer

    @classmethod
    def check_corpus(cls, corpus: Corpus, length: int) -> None:
        """Raise `DataError` where a corpus is too small to train on."""
        if not corpus.documents:
            raise DataError(
                f"no record to train on is left: training.objective '{cls.name}' leaves out what is empty, or does not "
                f"fit into training.sequence_length={length:,} tokens; give more records, or a longer length"
            )

    @classmethod
    def labels(cls, documents: Callable[[], Iterable[Document]]) -> list[str]:
        """The names of the labels that documents carry, of an objective that knows labels."""
        return []

    @classmethod
    def encode(
        cls, tokenizer: Tokenizer, model: spec.Transformer, *, length: int, labels: Sequence[str] = ()
    ) -> Encode:
        """How documents become ids, for a model of this spec; records longer than `length` are cut or left out."""
        raise NotImplementedError

    def examples(self, corpus: Corpus, length: int) -> Examples[Any]:
        """What of a corpus is trained on at a time, none longer than `length`."""
        raise NotImplementedError

    def lengths(self, examples: Any) -> tuple[float, float | None]:
        """How many tokens the model reads of an example, on average; and its encoder, of an encoder-decoder."""
        raise NotImplementedError

    def batch(self, examples: Sequence[Any], generator: np.random.Generator, /) -> Batch:
        """Examples as the inputs of one call. What is random is drawn for each example from the next child of
        `generator` (`spawn`), a function of seed and step: whatever examples come with it, or before it elsewhere."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over the targets of their loss, what the model itself adds to be minimised), float32 scalars.

        Sums, so that micro-batches add up to the step whatever number of targets each has.
        """
        out = model(**batch.inputs)
        return out.loss * batch.target_count, torch.as_tensor(out.auxiliary_loss) * batch.target_count

    def measure(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """What a validation is told of a batch, by name, each summed over its targets; `loss` is among them."""
        loss, _ = self.loss(model, batch)
        return {"loss": loss}


class TextObjective(Objective):
    """One that reads windows of a text."""

    @classmethod
    def encode(
        cls, tokenizer: Tokenizer, model: spec.Transformer, *, length: int, labels: Sequence[str] = ()
    ) -> Encode:
        return partial(encode_documents, tokenizer=tokenizer)

    @classmethod
    def check_corpus(cls, corpus: Corpus, length: int) -> None:
        if not corpus.documents or len(corpus.tokens) < length:
            count = len(corpus.tokens) if corpus.documents else 0
            raise DataError(
                f"the training data has {count:,} tokens, fewer than one window of {length:,}; give more text or a "
                f"shorter training.sequence_length"
            )

    def examples(self, corpus: Corpus, length: int) -> Windows:
        return Windows(corpus, length)

    def lengths(self, examples: Windows) -> tuple[float, float | None]:
        return examples.length, None


class RecordObjective(Objective):
    """One that reads records whole; `read` names the columns whose tokens the model reads, its encoder's first."""

    read: ClassVar[tuple[str, ...]] = ("tokens",)

    @classmethod
    def encode(
        cls, tokenizer: Tokenizer, model: spec.Transformer, *, length: int, labels: Sequence[str] = ()
    ) -> Encode:
        return partial(encode_records, encode=cls.encoder(tokenizer, model, length, labels))

    @classmethod
    def encoder(
        cls, tokenizer: Tokenizer, model: spec.Transformer, length: int, labels: Sequence[str]
    ) -> Callable[[Sequence[Document]], list[Columns]]:
        """The function that gives each record its columns, none where it is to be left out."""
        raise NotImplementedError

    def examples(self, corpus: Corpus, length: int) -> Records:
        return Records(corpus, self.read)

    def lengths(self, examples: Records) -> tuple[float, float | None]:
        return float(examples.sizes.mean()), None


class Conditional(Objective):
    """One that asks for a sequence, given another. An encoder reads what is given, or a decoder reads it first:

        encoder-decoder   source   given             decoder   tokens   given wanted
                          tokens   start wanted                targets        wanted
                          targets  wanted

    The pairs of a batch lie side by side in one row, documents that do not see each other, without any padding.
    """

    shapes = ("encoder-decoder", "decoder")

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.has_encoder = model.encoder is not None
        self.sees_prefix = model.sees_prefix
        start = model.generation.get("decoder_start_token_id")
        if self.has_encoder and start is None:
            raise TrainingError(
                f"training.objective '{self.name}': the model has no decoder_start_token_id in its "
                f"generation_config.json, which it needs"
            )
        self.start = int(start) if start is not None else 0

    def conditional(self, pairs: Sequence[Pair]) -> Batch:
        """The inputs that ask for the second of each pair, given the first."""
        if self.has_encoder:
            inputs = {
                "source": _row(given for given, _ in pairs),
                "source_documents": (tuple(len(given) for given, _ in pairs),),
                "tokens": _row([self.start, *wanted[:-1]] for _, wanted in pairs),
                "targets": _row(wanted for _, wanted in pairs),
                "documents": (tuple(len(wanted) for _, wanted in pairs),),
            }
        else:
            inputs = {
                "tokens": _row([*given, *wanted[:-1]] for given, wanted in pairs),
                "targets": _row([*[NO_TARGET] * (len(given) - 1), *wanted] for given, wanted in pairs),
                "documents": (tuple(len(given) + len(wanted) - 1 for given, wanted in pairs),),
            }
            if self.sees_prefix:
                inputs["prefix"] = (tuple(len(given) for given, _ in pairs),)
        return Batch(inputs, sum(len(wanted) for _, wanted in pairs))


def _row(sequences: Any) -> Tensor:
    """Sequences end to end, [1, N] int64."""
    return torch.tensor([list(chain.from_iterable(sequences))])


def documents_of(window: Window) -> list[list[int]]:
    """The documents of a window, without padding."""
    ends = [end for end in accumulate(window.documents, initial=0) if end <= window.filled]
    return [window.tokens[begin:end].tolist() for begin, end in pairwise(ends)]


def window_batch(tokens: Sequence[np.ndarray], targets: Sequence[np.ndarray], windows: Sequence[Window]) -> Batch:
    """A row for each window."""
    wanted = np.stack(targets)
    inputs = {
        "tokens": torch.from_numpy(np.stack(tokens)),
        "targets": torch.from_numpy(wanted),
        "documents": tuple(window.documents for window in windows),
    }
    return Batch(inputs, int((wanted != NO_TARGET).sum()))


def record_batch(tokens: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> Batch:
    """Records side by side in one row, documents that do not see each other, without any padding."""
    wanted = np.concatenate(targets)
    inputs = {
        "tokens": torch.from_numpy(np.concatenate(tokens))[None],
        "targets": torch.from_numpy(wanted)[None],
        "documents": (tuple(map(len, tokens)),),
    }
    return Batch(inputs, int((wanted != NO_TARGET).sum()))


def right_answers(model: Transformer, batch: Batch) -> dict[str, Tensor]:
    """The loss of a batch, and at how many of its targets the likeliest answer is the wanted one (`accuracy`)."""
    out = model(**batch.inputs)
    targets = batch.inputs["targets"]
    asked = targets != NO_TARGET
    assert model.head is not None and out.loss is not None
    # The head once more, of what is asked alone: a loss never holds the logits.
    found = out.hidden[asked]
    right = model.head(found, Tokens(len(found), start=0)).argmax(-1) == targets[asked]
    return {"loss": out.loss * batch.target_count, "accuracy": right.sum()}
