"""Objectives asked of a whole corpus: the means over its targets, the same at every call."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from objectives import tiny

from anyformer.data import Document
from anyformer.errors import DataError, InputError, TrainingError
from anyformer.inspection.evaluation import asking
from anyformer.inspection.evaluation.asking import ask, longest, questions, side_by_side

TEXTS = [Document(str(index), f"text {index} of a few, " * (3 * index + 1)) for index in range(6)]
PAIRS = [
    {"source": "one two", "target": "eins zwei"},
    {"source": "the cat sat", "target": "die Katze saß"},
    {"source": "x", "target": "y"},
]


def records(*fields: dict[str, Any]) -> list[Document]:
    """Records with these fields."""
    return [Document(f"line {number}", each.get("text", ""), fields=each) for number, each in enumerate(fields, 1)]


@pytest.mark.parametrize(
    ("preset", "objective"), [("bert:tiny", "masked"), ("t5:tiny", "spans"), ("llama:tiny", "prefix")]
)
def test_what_is_drawn_follows_from_the_seed(preset: str, objective: str) -> None:
    """The same seed asks the same, another one something else; nothing of it is left behind in the model."""
    model = tiny(preset, objective)
    torch.manual_seed(1)
    first = ask(model, objective, TEXTS, length=40)
    torch.manual_seed(2)
    assert ask(model, objective, TEXTS, length=40) == first
    assert ask(model, objective, TEXTS, length=40, seed=1)["loss"] != first["loss"]
    assert model.training and first["targets"] > 0 and first["perplexity"] == pytest.approx(math.exp(first["loss"]))


def test_masked_figures_are_those_of_every_target_by_itself() -> None:
    """Loss and accuracy are means over hidden tokens, not over batches, each found by a pass over its window alone."""
    model = tiny("bert:tiny", "masked")
    assert model.tokenizer is not None
    found = ask(model, "masked", TEXTS, length=30)
    nats, right, count = 0.0, 0, 0
    with questions(model, "masked", TEXTS, length=30) as asked:
        for batch in asked.batches(asking.unheard):
            for row, documents in enumerate(batch.inputs["documents"]):
                inputs = {name: batch.inputs[name][row : row + 1] for name in ("tokens", "targets")}
                logits = model(inputs["tokens"], documents=(documents,)).logits[0]
                for share, best, target in zip(logits.log_softmax(-1), logits.argmax(-1), inputs["targets"][0]):
                    if target >= 0:
                        nats, right, count = nats - float(share[target]), right + int(best == target), count + 1
    assert found["targets"] == count
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["accuracy"] == pytest.approx(right / count)


@pytest.mark.parametrize("preset", ["t5:tiny", "llama:tiny"])
def test_the_loss_of_pairs_is_that_of_each_by_itself(preset: str) -> None:
    """Mean over the targets' tokens; pairs that are too long are left out and counted."""
    model = tiny(preset, "seq2seq")
    whole = ask(model, "seq2seq", records(*PAIRS), length=16)
    alone = [ask(model, "seq2seq", [each], length=16) for each in records(*PAIRS)]
    total = sum(each["loss"] * each["targets"] for each in alone)
    assert whole["loss"] == pytest.approx(total / sum(each["targets"] for each in alone), rel=1e-5)
    assert (whole["examples"], whole["left_out"]) == (3, 0)
    short = ask(model, "seq2seq", records(*PAIRS), length=5)
    assert (short["examples"], short["left_out"]) == (1, 2)


def test_preferences_are_of_answers_not_of_tokens() -> None:
    """A record is one target: how often the chosen answer is the likelier, and no perplexity."""
    each = {"prompt": "one", "chosen": "two", "rejected": "a dog"}
    found = ask(tiny("llama:tiny", "preferences"), "preferences", records(each, {**each, "chosen": "three"}))
    assert (found["targets"], found["accuracy"] in (0, 0.5, 1)) == (2, True) and "perplexity" not in found


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs side by side in packed rows cost what they cost one by one."""
    model = tiny("t5:tiny", "seq2seq")
    together = ask(model, "seq2seq", records(*PAIRS))
    monkeypatch.setattr(asking, "BATCH_TOKENS", 1)
    alone = ask(model, "seq2seq", records(*PAIRS))
    assert alone.pop("loss") == pytest.approx(together.pop("loss"), rel=1e-5)
    assert alone["targets"] == together["targets"]


def test_examples_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as fit, at least one, at most so many; each once, in order."""
    monkeypatch.setattr(asking, "BATCH_TOKENS", 10)
    assert list(side_by_side([4, 6, 1, 20, 3, 3])) == [[0, 1], [2], [3], [4, 5]]
    assert list(side_by_side([1] * 5, most=2)) == [[0, 1], [2, 3], [4]]
    assert list(side_by_side([])) == []


def test_progress_ends_at_all_examples() -> None:
    """Progress rises to the number of examples."""
    told: list[tuple[int, int]] = []
    ask(tiny("t5:tiny", "seq2seq"), "seq2seq", records(*PAIRS), progress=lambda done, all: told.append((done, all)))
    assert told == sorted(told) and told[-1] == (3, 3)


def test_what_cannot_be_asked_is_said() -> None:
    """Another shape, no tokenizer, one without the special token, no record that fits."""
    with pytest.raises(TrainingError, match="'masked' needs an encoder with a masked-language-model head"):
        ask(tiny("llama:tiny", "causal"), "masked", TEXTS)
    model = tiny("t5:tiny", "seq2seq")
    with pytest.raises(InputError, match="objective 'spans' needs the special token '<extra_id_0>', and the model's"):
        ask(model, "spans", TEXTS)
    with pytest.raises(DataError, match="there is no record that objective 'seq2seq' can use; give more, or longer"):
        ask(model, "seq2seq", records(PAIRS[0]), length=2)
    model.tokenizer = None
    with pytest.raises(InputError, match="this model has no tokenizer"):
        ask(model, "seq2seq", records(PAIRS[0]))


def test_as_long_as_a_model_reads() -> None:
    """What its stacks have learned, else its context, and never more than 2,048 unasked."""
    assert longest(tiny("bert:tiny", "masked").spec) == 128
    assert longest(tiny("llama:tiny", "causal").spec.replace(context=1 << 20)) == 2048
    assert longest(tiny("t5:tiny", "seq2seq").spec.replace(context=None)) == 2048
