"""What a model makes of a few held-out examples, for people to read: a text gone on with, an answer beside the wanted
one, hidden tokens found, labels named.

Every objective is shown by its own batches: they hold what is given, and what is wanted of it. Nothing random of the
run is touched, and the same weights give the same samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.data import NO_TARGET
from anyformer.generation import Settings, left_padded, until_end
from anyformer.model import Transformer
from anyformer.text import Tokenizer
from anyformer.training.objectives import Objective
from anyformer.training.objectives.objective import RecordObjective

#: Tokens of a text that are given, that are written at most, and that are shown of what is found in place.
GIVEN, WRITTEN, SHOWN = 32, 48, 96
#: How the next token of a text is drawn; an answer is the likeliest one.
DRAWN = {"temperature": 0.8, "top_k": 50}
#: Of all the tokens that a run trains on, it writes no more than this share in samples, and so often at most. To write
#: one takes as long as to train on three (a model of GPT-2's width) to eleven (128 wide), measured on two cores.
SHARE, MOST_OFTEN = 1 / 1000, 10
#: What stands for a hidden token.
HIDDEN = "▢"
RIGHT = {True: "right", False: "wrong"}


@dataclass(frozen=True)
class Sample:
    """What was given, what is wanted, and the answer: pieces of text, each `right`, `wrong`, or neither ("")."""

    prompt: str
    wanted: str
    answer: list[tuple[str, str]]


@dataclass(frozen=True)
class Question:
    """One document of a batch of one example: the inputs of that batch, and where the document stands in its row."""

    inputs: Mapping[str, Any]
    index: int
    place: slice


def sample_every(steps: int, validate_every: int, tokens: int, count: int) -> int:
    """At every how many steps to take `count` samples in a run of so many steps and `tokens`, by default: with some of
    the validations, so that they cost a small share of the run. The last step has some in any case."""
    times = min(max(int(SHARE * tokens / (count * WRITTEN)), 1), MOST_OFTEN)
    validations = math.ceil(steps / validate_every)
    return validate_every * math.ceil(validations / times)


def take(model: Transformer, objective: Objective, examples: Sequence[Any], seed: int) -> list[dict[str, Any]]:
    """Samples of a model, one for each example that has anything to ask, as plain data.

    The model is in evaluation mode meanwhile, and computes eagerly: shapes that differ with every token are not worth
    compiling for.
    """
    asked = [question for example in examples if (question := _question(objective, example, seed)) is not None]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            return [asdict(sample) for sample in HOW[model.spec.head.kind](model, asked, objective.is_likelihood, seed)]
    finally:
        model.train(was_training)


def _question(objective: Objective, example: Any, seed: int) -> Question | None:
    """What to ask about an example: its first document if it is a record (of two answers the chosen one), else the one
    that is asked for most; None where nothing is."""
    inputs = objective.batch([example], np.random.default_rng(seed)).inputs
    begins = list(accumulate(inputs["documents"][0], initial=0))
    places = [slice(begin, end) for begin, end in pairwise(begins)]
    if isinstance(objective, RecordObjective):
        return Question(inputs, 0, places[0])
    counts = [int((inputs["targets"][0, place] != NO_TARGET).sum()) for place in places]
    index = counts.index(max(counts))
    return Question(inputs, index, places[index]) if counts[index] else None


def _written(model: Transformer, asked: Sequence[Question], draws: bool, seed: int) -> list[Sample]:
    """What a language model writes, given the source or the beginning of each."""
    pairs = [_given_and_wanted(question) for question in asked]
    if not pairs:
        return []
    tokenizer = _tokenizer(model)
    ids, valid = left_padded([given for given, _ in pairs], tokenizer.pad or 0, model.device)
    how = DRAWN if draws else {"temperature": 0.0}
    rows = model.generate(ids, valid=valid, max_new_tokens=WRITTEN, beams=1, seed=seed, **how)
    ends = Settings.of(model.generation).eos
    answers = [until_end(row, ends) for row in rows.tolist()]
    return [
        Sample(_text(tokenizer, given), _text(tokenizer, wanted), [(_text(tokenizer, answer), "")])
        for (given, wanted), answer in zip(pairs, answers)
    ]


def _given_and_wanted(question: Question) -> tuple[list[int], list[int]]:
    """The ids that a model is given, and those that are wanted of it."""
    inputs = question.inputs
    targets = inputs["targets"][0, question.place].tolist()
    first = next(at for at, target in enumerate(targets) if target != NO_TARGET)
    if "source" in inputs:
        begins = list(accumulate(inputs["source_documents"][0], initial=0))
        given = inputs["source"][0, begins[question.index] : begins[question.index + 1]].tolist()
    else:
        # Where everything is asked for, as much is given as makes a beginning.
        first = first or min(GIVEN, len(targets) // 2)
        given = inputs["tokens"][0, question.place][: first + 1].tolist()
    wanted = targets[first : first + WRITTEN]
    return given, wanted[: wanted.index(NO_TARGET)] if NO_TARGET in wanted else wanted


def _found(model: Transformer, asked: Sequence[Question], draws: bool, seed: int) -> list[Sample]:
    """What a model finds where tokens were hidden."""
    samples = []
    for question in asked:
        tokens, targets, found = _in_place(model, question)
        is_given = [target == NO_TARGET for target in targets]
        original = [token if given else target for token, target, given in zip(tokens, targets, is_given)]
        answered = [token if given else best for token, best, given in zip(tokens, found, is_given)]
        marks = ["" if given else RIGHT[best == target] for best, target, given in zip(found, targets, is_given)]
        pieces = _pieces(model, original)
        prompt = [piece if given else " " * piece.startswith(" ") + HIDDEN for piece, given in zip(pieces, is_given)]
        answer = list(zip(_pieces(model, answered), marks))
        samples.append(Sample("".join(prompt), "".join(pieces), answer))
    return samples


def _named(model: Transformer, asked: Sequence[Question], draws: bool, seed: int) -> list[Sample]:
    """Which label a model gives a text."""
    label, samples = _labels(model), []
    for question in asked:
        found, wanted = int(_answers(model, question)[0]), int(question.inputs["targets"][0])
        text = "".join(_pieces(model, question.inputs["tokens"][0, question.place].tolist()))
        samples.append(Sample(text, label(wanted), [(label(found), RIGHT[found == wanted])]))
    return samples


def _named_words(model: Transformer, asked: Sequence[Question], draws: bool, seed: int) -> list[Sample]:
    """Which label a model gives each word, behind its first token."""
    label, samples = _labels(model), []
    for question in asked:
        tokens, targets, found = _in_place(model, question)
        pieces = _pieces(model, tokens)
        wanted, answer = "", []
        for piece, target, best in zip(pieces, targets, found):
            is_asked = target != NO_TARGET
            wanted += f"{piece}/{label(target)}" if is_asked else piece
            answer += [(piece, ""), (f"/{label(best)}", RIGHT[best == target])] if is_asked else [(piece, "")]
        samples.append(Sample("".join(pieces), wanted, answer))
    return samples


#: How a model is shown, by its head.
HOW: dict[str, Callable[[Transformer, Sequence[Question], bool, int], list[Sample]]] = {
    "language_model": _written,
    "masked_language_model": _found,
    "sequence_classification": _named,
    "token_classification": _named_words,
}


def _answers(model: Transformer, question: Question) -> Tensor:
    """The likeliest answer at every position, or for every text."""
    given = {name: value for name, value in question.inputs.items() if name != "targets"}
    on_device = {name: value.to(model.device) if isinstance(value, Tensor) else value for name, value in given.items()}
    return model(**on_device).logits.argmax(-1)


def _in_place(model: Transformer, question: Question) -> tuple[list[int], list[int], list[int]]:
    """Of a document as much as is shown: its tokens, its targets, and what is found there."""
    shown = slice(question.place.start, min(question.place.stop, question.place.start + SHOWN))
    rows = (question.inputs["tokens"], question.inputs["targets"], _answers(model, question))
    tokens, targets, found = (row[0, shown].tolist() for row in rows)
    return tokens, targets, found


def _pieces(model: Transformer, ids: Sequence[int]) -> list[str]:
    """The characters that each id completes, those of special tokens left out."""
    stream = _tokenizer(model).stream()
    pieces = [stream.push(token) for token in ids]
    return [*pieces[:-1], pieces[-1] + stream.finish()] if pieces else []


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Ids as a text, without what stands around one; with other special tokens, such as those of what was cut out."""
    around = {tokenizer.bos, tokenizer.eos, tokenizer.pad}
    return tokenizer.decode([token for token in ids if token not in around], skip_special=False)


def _labels(model: Transformer) -> Callable[[int], str]:
    """The names of the labels that the model carries, by number."""
    names = model.carried.attributes.get("id2label") if model.carried is not None else None
    return lambda number: str((names or {}).get(str(number), number))


def _tokenizer(model: Transformer) -> Tokenizer:
    assert model.tokenizer is not None
    return model.tokenizer
