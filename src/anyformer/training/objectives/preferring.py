"""Preferring: the better of two answers, learned from pairs of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer import spec
from anyformer.data import NO_TARGET, Document, Record, Records
from anyformer.errors import DataError, TrainingError
from anyformer.model import Transformer
from anyformer.parts.masks import Tokens
from anyformer.training.lora import Adapted
from anyformer.training.objectives.answering import conversation, span_of_answer, written
from anyformer.training.objectives.objective import Batch, Columns, Conditional, RecordObjective

if TYPE_CHECKING:
    from anyformer.text import Tokenizer
    from anyformer.training.recipe import Training

#: A prompt and an answer to it, as texts.
Answered = tuple[str, str]


class Preferences(Conditional, RecordObjective):
    """Make the chosen answer y likelier than the rejected one, measured from the model that the run began with, π₀
    (direct preference optimization, Rafailov et al. 2023, eq. 7):

        reward r(y) = β log(π(y|x) / π₀(y|x))        loss = -log σ(r(chosen) - r(rejected))

    The log-probability of an answer is the sum over its tokens, the end token included, and `beta` holds the model to
    π₀: of an adapted model that is the one without its changes, else a second copy; where a model is only evaluated,
    there is none, and the likelier answer has the higher reward. A record is one target. Prompts and
    answers are texts, or messages in the words of the model's own template. What is longer than the sequence length,
    prompt and answer together, is left out.
    """

    name = "preferences"
    fields = ("prompt", "chosen", "rejected")
    read: ClassVar[tuple[str, ...]] = ("chosen", "rejected")
    is_relative = True

    def __init__(self, model: Transformer) -> None:
        super().__init__(model)
        self.is_adapted, self.beta = isinstance(model, Adapted), 1.0
        self.beginning: Transformer | None = None

    def begin(self, settings: Training, start: Callable[[], Transformer]) -> None:
        if settings.label_smoothing or settings.z_loss:
            raise TrainingError(
                "training.objective 'preferences' weighs probabilities as they are; leave out training.label_smoothing "
                "and training.z_loss"
            )
        self.beta = settings.beta
        if not self.is_adapted:
            self.beginning = start().eval().requires_grad_(False)

    @classmethod
    def encoder(
        cls, tokenizer: Tokenizer, model: spec.Transformer, length: int, labels: Sequence[str]
    ) -> Callable[[Sequence[Document]], list[Columns]]:
        reads_whole = model.encoder is not None
        begins = [tokenizer.bos] if not reads_whole and tokenizer.bos is not None else []
        ends = [tokenizer.eos] if tokenizer.eos is not None else []

        def encode(documents: Sequence[Document]) -> list[Columns]:
            return [columns(document) for document in documents]

        def columns(document: Document) -> Columns:
            (prompt, chosen), (same, rejected) = (_answered(tokenizer, document, name) for name in cls.read)
            if prompt != same:
                raise DataError(f"{document.name}: 'chosen' and 'rejected' must answer the same prompt")
            is_chat = isinstance(document.fields["chosen"], list) or isinstance(document.fields["prompt"], list)
            before, after = ([], []) if is_chat else (begins, ends)
            given = before + tokenizer.encode(prompt, special=reads_whole and not is_chat)
            wanted = [tokenizer.encode(answer, special=False) + after for answer in (chosen, rejected)]
            if not given or not all(wanted) or len(given) + max(map(len, wanted)) > length:
                return {}
            return {"chosen": given + wanted[0], "rejected": given + wanted[1], "given": [len(given)]}

        return encode

    def lengths(self, examples: Records) -> tuple[float, float | None]:
        given = float(np.mean([examples[index]["given"][0] for index in range(min(len(examples), 1000))]))
        both = float(examples.sizes.mean())
        return (both - 2 * given, 2 * given) if self.has_encoder else (both - 2, None)

    def batch(self, records: Sequence[Record], generator: np.random.Generator) -> Batch:
        pairs = [
            (record[name][:given].tolist(), record[name][given:].tolist())
            for record in records
            for given in record["given"].tolist()
            for name in self.read
        ]
        return Batch(self.conditional(pairs).inputs, len(records))

    def loss(self, model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        assert isinstance(model, Transformer)
        margins, added = self.margins(model, batch)
        # By the count, which is 0 where a batch only fills up.
        return -F.logsigmoid(margins).mean() * batch.target_count, added * batch.target_count

    @torch.no_grad()
    def measure(self, model: Transformer, batch: Batch) -> dict[str, Tensor]:
        """The loss, how often the chosen answer has the higher reward, and by how much."""
        margins, _ = self.margins(model, batch)
        found = {"loss": -F.logsigmoid(margins), "accuracy": (margins > 0).float(), "margin": margins}
        return {name: each.mean() * batch.target_count for name, each in found.items()}

    def margins(self, model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
        """(r(chosen) - r(rejected) of each record, float32; what the model itself adds to be minimised)."""
        likelihoods, added = _log_likelihoods(model, batch)
        chosen, rejected = (self.beta * (likelihoods - self.before(model, batch))).unflatten(0, (-1, 2)).unbind(1)
        return chosen - rejected, added

    @torch.no_grad()
    def before(self, model: Transformer, batch: Batch) -> Tensor:
        """log π₀ of each answer; 0 where there is none."""
        if isinstance(model, Adapted):
            was_training = model.training
            with model.unchanged():
                likelihoods, _ = _log_likelihoods(model.eval(), batch)
            model.train(was_training)
            return likelihoods
        if self.beginning is None:
            return torch.zeros(())
        return _log_likelihoods(self.beginning, batch)[0]


def _log_likelihoods(model: Transformer, batch: Batch) -> tuple[Tensor, Tensor]:
    """(log π(answer | prompt) of each answer in nats, float32; what the model itself adds to be minimised)."""
    inputs = {name: value for name, value in batch.inputs.items() if name != "targets"}
    # `last`: the head is asked below, for the answers' tokens alone.
    out, head = model(**inputs, last=True), model.head
    assert head is not None
    (lengths,) = inputs["documents"]
    found = []
    for hidden, wanted in zip(out.hidden[0].split(lengths), batch.inputs["targets"][0].split(lengths)):
        asked = wanted != NO_TARGET
        total, _ = head.loss(hidden[None, asked], Tokens(int(asked.sum()), start=0), wanted[None, asked])
        found.append(-total)
    return torch.stack(found), torch.as_tensor(out.auxiliary_loss)


def _answered(tokenizer: Tokenizer, document: Document, name: str) -> Answered:
    """What stands before an answer, and the answer."""
    prompt, answer = document.fields["prompt"], document.fields[name]
    if isinstance(prompt, str) and isinstance(answer, str):
        return prompt, answer
    asked, said = _messages(document, "prompt", "user"), _messages(document, name, "assistant")
    # Some data repeat the prompt in front of each answer.
    messages = said if said and said[0]["role"] != "assistant" else [*asked, *said]
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"{document.name}: the last message of {name} must be the assistant's")
    whole = written(tokenizer, document, messages)
    begin, end = span_of_answer(tokenizer, document, whole, messages)
    return whole[:begin], whole[begin:end]


def _messages(document: Document, field: str, role: str) -> list[Mapping[str, Any]]:
    """A field that is a list of messages, or the text of one."""
    value = document.fields[field]
    return [{"role": role, "content": value}] if isinstance(value, str) else conversation(document, field)
