"""How close a model's answers come to those wanted: BLEU and chrF, as sacrebleu computes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from anyformer.data import Document
from anyformer.errors import InputError
from anyformer.generation import Settings, left_padded, seeds_of, with_marks, written
from anyformer.inspection.evaluation.asking import Progress, evaluating, longest, reader, side_by_side, unheard
from anyformer.model import Transformer
from anyformer.training.objectives import SequenceToSequence

#: The most tokens of an answer, where neither the caller nor the checkpoint says.
LONGEST_ANSWER = 256
#: The most prompts that are answered side by side.
SIDE_BY_SIDE = 64


@dataclass(frozen=True)
class Answered:
    """A source, the target that was wanted, and what the model answered."""

    source: str
    target: str
    answer: str


def needed(module: str) -> Any:
    """A module of the extra `eval`. Raises `InputError` where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise InputError(f"this needs {package}, which is not installed: pip install 'anyformer[eval]'") from None


def answer(
    model: Transformer,
    documents: Iterable[Document],
    *,
    length: int | None = None,
    progress: Progress = unheard,
    **settings: Any,
) -> tuple[list[Answered], int]:
    """What the model answers to the `source` of each record, in their order; and how many records were left out,
    empty or longer than `length` tokens on either side.

    A decoder reads the source and a line break, as objective `seq2seq` trains it. `settings` are those of `generate`;
    each record has a seed of its own. Answers come in batches of sources of about the same length, which changes none.
    """
    tokenizer = reader(model, "seq2seq")
    known = {"max_new_tokens": LONGEST_ANSWER, **model.generation}
    chosen = Settings.of(known, **{**settings, "answers": 1}).within(model.vocabulary)
    chosen = with_marks(chosen, tokenizer) if chosen.stop else chosen
    documents = list(documents)
    columns = SequenceToSequence.encoder(tokenizer, model.spec, length or longest(model.spec), ())(documents)
    pairs = [(document, found["source"]) for document, found in zip(documents, columns) if found]
    order = sorted(range(len(pairs)), key=lambda index: len(pairs[index][1]))
    answers: dict[int, str] = {}
    seeds = seeds_of(chosen.seed, len(pairs))
    with evaluating(model):
        for batch in side_by_side([len(pairs[index][1]) for index in order], SIDE_BY_SIDE):
            together = [order[each] for each in batch]
            ids, valid = left_padded([pairs[index][1] for index in together], chosen.filler, model.device)
            own = {**chosen.model_dump(), "seed": [seeds[index] for index in together]}
            for index, row in zip(together, model.generate(ids, valid=valid, **own).tolist()):
                answers[index] = (written(row, chosen, tokenizer).text or "").strip()
            progress(len(answers), len(pairs))
    found = [
        Answered(document.fields["source"], document.fields["target"], answers[index])
        for index, (document, _) in enumerate(pairs)
    ]
    return found, len(documents) - len(found)


def scores(answered: Sequence[Answered]) -> dict[str, Any]:
    """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of answers against the targets, 0 to 100, by sacrebleu as its
    command line computes them, with the signatures that say how (Post 2018)."""
    metrics = needed("sacrebleu.metrics")
    answers, targets = [each.answer for each in answered], [[each.target for each in answered]]
    found: dict[str, Any] = {}
    for name, metric in (("bleu", metrics.BLEU()), ("chrf", metrics.CHRF())):
        found[name] = metric.corpus_score(answers, targets).score
        found[f"{name}_signature"] = str(metric.get_signature())
    return found
