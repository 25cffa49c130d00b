"""What a model is asked by an objective, over a whole corpus: its loss, and where answers are single tokens how many of
them are right.

What is hidden, cut out or drawn is the same at every call with the same seed and data.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from anyformer import spec
from anyformer.data import Document, open_corpus, read_manifest, write_corpus
from anyformer.errors import DataError, InputError
from anyformer.model import Transformer
from anyformer.text import Tokenizer
from anyformer.training.objectives import OBJECTIVES, Batch, Chat, Objective, SequenceToSequence, TextObjective

#: Tokens of a batch, and the longest example that is taken unasked.
BATCH_TOKENS, LONGEST = 4096, 2048

#: Objectives whose targets are tokens.
OF_TOKENS = (TextObjective, SequenceToSequence, Chat)

#: Told how much is done, of how much.
Progress = Callable[[int, int], object]


def unheard(done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Questions:
    """The examples of a corpus, ready to be asked; `left_out` more were empty or too long."""

    objective: Objective
    examples: Any
    left_out: int
    seed: int

    def batches(self, progress: Progress) -> Iterator[Batch]:
        """All examples in their order, about `BATCH_TOKENS` tokens at a time, on the model's device."""
        count = len(self.examples.sizes)
        for indices in side_by_side(self.examples.sizes.tolist()):
            generator = np.random.default_rng((self.seed, indices[0]))
            yield self.objective.batch([self.examples[index] for index in indices], generator)
            progress(indices[-1] + 1, count)


def side_by_side(sizes: Sequence[int], most: int | None = None) -> Iterator[list[int]]:
    """Indices of examples of these sizes, in their order: as many together as fit into `BATCH_TOKENS`, at least one, at
    `most` so many."""
    batch: list[int] = []
    tokens = 0
    for index, size in enumerate(sizes):
        if batch and (tokens + size > BATCH_TOKENS or len(batch) == most):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += size
    if batch:
        yield batch


@contextmanager
def questions(
    model: Transformer,
    objective: str,
    documents: Iterable[Document],
    *,
    length: int | None = None,
    labels: Sequence[str] = (),
    seed: int = 0,
) -> Iterator[Questions]:
    """The documents as the examples of an objective, none longer than `length` tokens (what the model reads, at most
    2,048, unless given); as long as they are needed, they lie on the disk.

    Raises `TrainingError` for a model that cannot have this objective, `InputError` where its tokenizer cannot, and
    `DataError` where no document can be used.
    """
    kind, tokenizer = OBJECTIVES[objective], reader(model, objective)
    length = length or longest(model.spec)
    encode = kind.encode(tokenizer, model.spec, length=length, labels=labels)
    with TemporaryDirectory() as place, evaluating(model):
        directory, size = Path(place), tokenizer.vocabulary_size
        write_corpus(
            directory, (replace(each, split="validation") for each in documents), encode, vocabulary=size, about={}
        )
        corpus = open_corpus(directory, "validation")
        if not corpus.documents:
            raise DataError(f"there is no record that objective '{objective}' can use; give more, or longer ones")
        if issubclass(kind, TextObjective):
            length = min(length, len(corpus.tokens))
        made = kind(model)
        left_out = read_manifest(directory)["splits"]["validation"]["left_out"]
        yield Questions(made, made.examples(corpus, length), left_out, seed)


def reader(model: Transformer, objective: str) -> Tokenizer:
    """The tokenizer of a model that can have an objective. Raises `TrainingError` for one that cannot, and `InputError`
    where it has no tokenizer, or none with the special tokens needed."""
    OBJECTIVES[objective].check(model.spec)
    if model.tokenizer is None:
        raise InputError("this model has no tokenizer, so it cannot read texts; load one that has, or train one")
    roles, others = OBJECTIVES[objective].lacking(model.tokenizer)
    if missing := [*roles.values(), *others]:
        raise InputError(
            f"objective '{objective}' needs the special token {missing[0]!r}, and the model's tokenizer has none"
        )
    return model.tokenizer


def longest(described: spec.Transformer) -> int:
    """How many tokens a model reads at a time, at most `LONGEST`."""
    stacks = [stack for stack in (described.encoder, described.decoder) if stack is not None]
    learned = [
        stack.embeddings.position.size for stack in stacks if isinstance(stack.embeddings.position, spec.Learned)
    ]
    return min(*learned, described.context or LONGEST, LONGEST)


@contextmanager
def evaluating(model: Transformer) -> Iterator[None]:
    """Without dropout and gradients, and with the model's mode put back."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def ask(
    model: Transformer,
    objective: str,
    documents: Iterable[Document],
    *,
    length: int | None = None,
    seed: int = 0,
    progress: Progress = unheard,
) -> dict[str, float]:
    """The mean `loss` of an objective's targets over documents, nats, its `perplexity` where these are tokens, what
    else the objective measures of each (`accuracy`), how many `targets` and `examples` that is, and were `left_out`.

    Raises as `questions` does.
    """
    totals: defaultdict[str, float] = defaultdict(float)
    targets = 0
    with questions(model, objective, documents, length=length, seed=seed) as asked:
        for batch in asked.batches(progress):
            for name, total in asked.objective.measure(model, batch.to(model.device)).items():
                totals[name] += total.item()
            targets += batch.target_count
        counts = {"targets": targets, "examples": len(asked.examples.sizes), "left_out": asked.left_out}
    means = {name: total / targets if targets else math.nan for name, total in totals.items()}
    of_tokens = {"perplexity": perplexity(means["loss"])} if issubclass(OBJECTIVES[objective], OF_TOKENS) else {}
    return {**means, **of_tokens, **counts}


def perplexity(loss: float) -> float:
    """e to the loss; infinite where that is beyond any number."""
    return math.exp(loss) if loss < 700 else math.inf
