"""A model evaluated on files: which objective they ask for, and what came of it, as data."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from anyformer import spec
from anyformer.data import Document, read_documents
from anyformer.data.formats import RECORD_SUFFIXES, TABLE_SUFFIXES, kind
from anyformer.errors import InputError
from anyformer.inspection.evaluation.answering import answer, scores
from anyformer.inspection.evaluation.asking import Progress, ask, unheard
from anyformer.inspection.evaluation.classification import Classification, Score, classify
from anyformer.inspection.evaluation.likelihood import Evaluation
from anyformer.inspection.evaluation.likelihood import evaluate as read_through
from anyformer.model import Transformer
from anyformer.training.objectives import OBJECTIVES

#: Given the name of a piece of work, who is to be told of its progress.
Bars = Callable[[str], Progress]


@dataclass(frozen=True)
class Data:
    """Files, how they are read (as `read_documents` has it), and which of their documents: the first `limit` of them,
    or the `last`, where one is given."""

    files: Sequence[Path]
    encodings: Sequence[str] = ("utf-8",)
    columns: Mapping[str, str | int] = field(default_factory=dict)
    limit: int | None = None
    last: int | None = None

    @property
    def holds_records(self) -> bool:
        """Whether any file is one of records or a table."""
        return any(kind(file) in (*RECORD_SUFFIXES, *TABLE_SUFFIXES) for file in self.files)

    def documents(self, fields: Sequence[str]) -> Iterator[Document]:
        """The documents of all files, with these fields."""
        read = read_documents(self.files, self.encodings, fields=fields, columns=self.columns)
        return iter(deque(read, self.last)) if self.last is not None else islice(read, self.limit)


def natural_objective(described: spec.Transformer, holds_records: bool) -> str:
    """The objective that a model's head and shape, and the kind of data, say. Raises `InputError` for a model that has
    none."""
    match described.head:
        case spec.SequenceClassificationHead():
            return "classify"
        case spec.TokenClassificationHead():
            return "classify_tokens"
        case spec.MaskedLanguageModelHead():
            return "masked"
        case spec.LanguageModelHead():
            of_pairs = "seq2seq" if holds_records else "spans"
            return of_pairs if described.encoder is not None else "causal"
    raise InputError(f"a model with a head of kind '{described.head.kind}' answers nothing that could be evaluated")


def report(
    model: Transformer,
    data: Data,
    objective: str | None = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    seed: int = 0,
    samples: int = 3,
    bars: Bars = lambda name: unheard,
    **settings: Any,
) -> dict[str, Any]:
    """Figures by name, with `objective`, the natural one unless given. Besides, of texts `files` with figures of each,
    of classes `labels`, and of pairs `samples` of answers, which `settings` of `generate` decide.

    `window` is how many tokens are read at a time, `seed` that of what is hidden or cut out, and of draws. Raises
    `InputError` for an objective that there is not, for settings of answers where none are given, and as the files
    beside this one do.
    """
    objective = objective or natural_objective(model.spec, data.holds_records)
    if objective not in OBJECTIVES:
        raise InputError(f"there is no objective '{objective}'; there are {', '.join(OBJECTIVES)}")
    if settings and objective != "seq2seq":
        raise InputError(
            f"objective '{objective}' asks for no answers that could be generated: leave out {', '.join(settings)}"
        )
    if objective == "causal":
        return {"objective": objective, **_of_texts(model, data, window, stride, bars)}
    documents = data.documents(OBJECTIVES[objective].fields_of(data.columns))
    if objective in ("classify", "classify_tokens"):
        found = classify(model, documents, length=window, progress=bars("reading"))
        return {"objective": objective, **_of_labels(found)}
    if objective != "seq2seq":
        return {
            "objective": objective,
            **ask(model, objective, documents, length=window, seed=seed, progress=bars("asking")),
        }
    pairs = list(documents)
    figures = ask(model, objective, pairs, length=window, progress=bars("reading"))
    answered, _ = answer(model, pairs, length=window, progress=bars("answering"), seed=seed, **settings)
    shown = [vars(each) for each in answered[:samples]]
    return {"objective": objective, **figures, **scores(answered), "samples": shown}


def _of_texts(model: Transformer, data: Data, window: int | None, stride: int | None, bars: Bars) -> dict[str, Any]:
    """Likelihoods of each file, records of one file taken together, and of all."""
    files = {str(file): Evaluation() for file in data.files}
    for document in data.documents(OBJECTIVES["causal"].fields):
        # A record is called by its file and its line.
        file = document.name if document.name in files else document.name.rpartition(", ")[0]
        files[file] += read_through(model, document.text, window=window, stride=stride, progress=bars(document.name))
    total = sum(files.values(), Evaluation())
    return {**_figures(total), "files": {name: _figures(each) for name, each in files.items() if each.bytes}}


def _figures(evaluation: Evaluation) -> dict[str, float]:
    names = ("loss", "perplexity", "bits_per_byte", "tokens", "bytes")
    return {name: getattr(evaluation, name) for name in names}


def _of_labels(found: Classification) -> dict[str, Any]:
    labels = {name: _score(each) for name, each in found.scores.items()}
    stretches = {"stretches": _score(found.stretches)} if found.stretches is not None else {}
    counts = {"targets": int(found.confusion.sum()), "examples": len(found.wanted), "left_out": found.left_out}
    return {
        "loss": found.loss,
        "accuracy": found.accuracy,
        "macro_f1": found.macro_f1,
        **counts,
        "labels": labels,
        **stretches,
    }


def _score(score: Score) -> dict[str, float]:
    return {name: getattr(score, name) for name in ("precision", "recall", "f1", "count")}
