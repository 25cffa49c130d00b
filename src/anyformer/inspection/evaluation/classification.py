"""How well a model names labels: accuracy, F1 of each label, and where labels mark stretches of words, F1 of these."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F

from anyformer.data import NO_TARGET, Document
from anyformer.errors import InputError
from anyformer.inspection.evaluation.asking import Progress, questions, unheard
from anyformer.model import Transformer

#: Labels that mark stretches: where one begins, what goes on inside it, and what is outside of all (Ramshaw and Marcus
#: 1995).
STRETCHES = re.compile(r"O|[BI]-.+")


@dataclass(frozen=True)
class Score:
    """How many of those `found` are `right`; `count` are there to be found."""

    right: int
    found: int
    count: int

    @property
    def precision(self) -> float:
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        return self.right / self.count if self.count else 0.0

    @property
    def f1(self) -> float:
        """Their harmonic mean; 0 where nothing is right (van Rijsbergen 1979, chapter 7)."""
        return 2 * self.right / (self.found + self.count) if self.right else 0.0


@dataclass(frozen=True)
class Classification:
    """What a model named, over records: each a sequence of labels, wanted and found; of a text a sequence of one.

    `loss` is the mean cross-entropy in nats; `left_out` records were empty.
    """

    labels: Sequence[str]
    wanted: Sequence[Sequence[int]]
    found: Sequence[Sequence[int]]
    loss: float = math.nan
    left_out: int = 0

    @property
    def confusion(self) -> np.ndarray:
        """[labels, labels] how often each (row) was named as each (column)."""
        table = np.zeros((len(self.labels), len(self.labels)), np.int64)
        np.add.at(table, (np.concatenate(self.wanted), np.concatenate(self.found)), 1)
        return table

    @property
    def accuracy(self) -> float:
        """The share of labels that are right."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def scores(self) -> dict[str, Score]:
        """Each label's, of those that are there or were found."""
        table = self.confusion
        of_each = zip(self.labels, table.diagonal().tolist(), table.sum(0).tolist(), table.sum(1).tolist())
        return {name: Score(right, found, count) for name, right, found, count in of_each if found or count}

    @property
    def macro_f1(self) -> float:
        """The mean of the labels' F1, rare ones counting as much as frequent ones."""
        return float(np.mean([score.f1 for score in self.scores.values()]))

    @property
    def stretches(self) -> Score | None:
        """Of stretches of words, right where label, beginning and end are (Tjong Kim Sang and De Meulder 2003); None
        where labels mark none."""
        if not all(STRETCHES.fullmatch(label) for label in self.labels) or set(self.labels) == {"O"}:
            return None
        wanted, found = (
            {
                (record, *stretch)
                for record, labels in enumerate(side)
                for stretch in stretches([self.labels[label] for label in labels])
            }
            for side in (self.wanted, self.found)
        )
        return Score(len(wanted & found), len(found), len(wanted))


def stretches(labels: Sequence[str]) -> list[tuple[str, int, int]]:
    """(kind, begin, end) of the stretches that B-, I- and O mark; one also begins at an I- that goes on with none."""
    found: list[tuple[str, int, int]] = []
    begin, kind = 0, ""
    for index, label in enumerate([*labels, "O"]):
        mark, _, of = label.partition("-")
        if kind and (mark != "I" or of != kind):
            found.append((kind, begin, index))
            kind = ""
        if of and not kind:
            begin, kind = index, of
    return found


def labels_of(model: Transformer) -> list[str]:
    """The names of the labels of a model's head: those of its checkpoint, else LABEL_0, LABEL_1 ..."""
    count = getattr(model.spec.head, "labels", 0)
    if not count:
        raise InputError(f"a model with a head of kind '{model.spec.head.kind}' names no labels")
    named = (model.carried.attributes if model.carried is not None else {}).get("id2label") or {}
    return [str(named.get(str(index), f"LABEL_{index}")) for index in range(count)]


def classify(
    model: Transformer,
    documents: Iterable[Document],
    *,
    length: int | None = None,
    progress: Progress = unheard,
) -> Classification:
    """What the model names in records of `text` and `label`, or of `tokens` (words) and as many `labels`, by its head.

    What is longer than `length` tokens is cut. Raises `InputError` for a model that names no labels, `DataError` for a
    label that it does not know.
    """
    labels = labels_of(model)
    objective = {"sequence_classification": "classify", "token_classification": "classify_tokens"}[model.spec.head.kind]
    wanted: list[list[int]] = []
    found: list[list[int]] = []
    nats, count = 0.0, 0
    with questions(model, objective, documents, length=length, labels=labels) as asked:
        for batch in asked.batches(progress):
            inputs = batch.to(model.device).inputs
            targets = inputs.pop("targets")
            logits = model(**inputs).logits.flatten(0, -2).float()
            targets = targets.flatten()
            nats += F.cross_entropy(logits, targets, ignore_index=NO_TARGET, reduction="sum").item()
            count += batch.target_count
            # A text has one target; of words, each document of the packed row has its own.
            lengths = [1] * len(targets) if objective == "classify" else list(inputs["documents"][0])
            for row, best in zip(targets.split(lengths), logits.argmax(-1).split(lengths)):
                asked_for = row != NO_TARGET
                wanted.append(row[asked_for].tolist())
                found.append(best[asked_for].tolist())
        return Classification(labels, wanted, found, nats / count, asked.left_out)
