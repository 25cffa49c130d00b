"""Labels counted: figures by definition, and those of a model over records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives import tiny

from anyformer.checkpoints import Carried
from anyformer.data import Document
from anyformer.errors import DataError, InputError
from anyformer.inspection.evaluation.classification import Classification, classify, labels_of, stretches
from anyformer.model import Transformer


def test_figures_by_hand() -> None:
    """Three labels over seven records: accuracy, precision, recall and F1 of each as counted by hand; one that neither
    occurs nor is found has no figures and none of the mean."""
    wanted, found = [0, 0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2, 0]
    figures = Classification(["a", "b", "c", "d"], [[each] for each in wanted], [[each] for each in found])
    assert figures.accuracy == pytest.approx(4 / 7)
    scores = figures.scores
    assert list(scores) == ["a", "b", "c"]
    assert (scores["a"].precision, scores["a"].recall) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (scores["b"].f1, scores["c"].f1) == (pytest.approx(1 / 2), pytest.approx(1 / 2))
    assert figures.macro_f1 == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert figures.stretches is None


def test_stretches_of_words() -> None:
    """B begins one, I goes on, O ends it; an I of another kind, or after none, begins one too."""
    assert stretches(["O", "B-x", "I-x", "O", "B-y"]) == [("x", 1, 3), ("y", 4, 5)]
    assert stretches(["B-x", "B-x", "I-x"]) == [("x", 0, 1), ("x", 1, 3)]
    assert stretches(["I-x", "I-y", "O", "I-y"]) == [("x", 0, 1), ("y", 1, 2), ("y", 3, 4)]
    assert stretches([]) == stretches(["O", "O"]) == []


@given(st.lists(st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"]), max_size=12))
def test_stretches_cover_what_is_marked(labels: list[str]) -> None:
    """Every word that is not O is in exactly one, of its own kind; every B is where one begins."""
    covered: dict[int, str] = {}
    for kind, begin, end in stretches(labels):
        for index in range(begin, end):
            assert index not in covered
            covered[index] = kind
    assert covered == {index: label[2:] for index, label in enumerate(labels) if label != "O"}
    begins = {begin for _, begin, _ in stretches(labels)}
    assert begins >= {index for index, label in enumerate(labels) if label[0] == "B"}


def test_a_stretch_is_right_as_a_whole() -> None:
    """F1 of stretches: of two wanted one is found whole, one with another end; accuracy counts words."""
    labels = ["O", "B-x", "I-x"]
    figures = Classification(labels, [[0, 1, 2, 0], [1, 2]], [[0, 1, 2, 0], [1, 0]])
    score = figures.stretches
    assert score is not None
    assert (score.right, score.found, score.count) == (1, 2, 2) and score.f1 == pytest.approx(0.5)
    assert figures.accuracy == pytest.approx(5 / 6)


def named(model: Transformer, *labels: str) -> Transformer:
    """The model with names for its labels, as its checkpoint carries them."""
    model.carried = Carried(attributes={"id2label": {str(index): label for index, label in enumerate(labels)}})
    return model.eval()


@pytest.mark.parametrize("preset", ["bert:tiny", "llama:tiny"])
def test_a_models_labels_of_texts(preset: str) -> None:
    """What it names is what its logits say of each text by itself; the loss is the mean over texts."""
    model = named(tiny(preset, "classify", labels=3), "bad", "good", "so-so")
    assert model.tokenizer is not None
    texts = ["a text", "another, longer one", "x", "and the last of them all"]
    documents = [Document(text, text, fields={"text": text, "label": "good"}) for text in texts]
    figures = classify(model, documents)
    with torch.no_grad():
        alone = [model(torch.tensor([model.tokenizer.encode(text)])).logits[0] for text in texts]
    assert figures.found == [[int(logits.argmax())] for logits in alone]
    assert figures.wanted == [[1]] * 4
    wanted = -sum(float(logits.log_softmax(-1)[1]) for logits in alone) / 4
    assert figures.loss == pytest.approx(wanted, rel=1e-5)


def test_a_models_labels_of_words() -> None:
    """One label a word, read at its first token, record by record."""
    model = named(tiny("bert:tiny", "classify_tokens", labels=3), "O", "B-x", "I-x")
    assert model.tokenizer is not None
    sentences = [["ab", "c"], ["d"], ["efg", "h", "ij"]]
    documents = [record({"tokens": words, "labels": ["O", "B-x", "I-x"][: len(words)]}) for words in sentences]
    figures = classify(model, documents)
    assert figures.wanted == [[0, 1], [0], [0, 1, 2]]
    for words, found in zip(sentences, figures.found):
        line = " ".join(words)
        with torch.no_grad():
            logits = model(torch.tensor([model.tokenizer.encode(line)])).logits[0]
        starts = [line.index(word) for word in words]
        assert found == logits[starts].argmax(-1).tolist()
    assert figures.stretches is not None


def record(fields: dict[str, Any]) -> Document:
    return Document("a record", fields.get("text", ""), fields=fields)


def test_labels_have_names() -> None:
    """The checkpoint's, else a number each; a label that the model does not know is refused by name, and so is a model
    that names none."""
    model = tiny("bert:tiny", "classify", labels=2)
    assert labels_of(model) == ["LABEL_0", "LABEL_1"]
    assert classify(model, [record({"text": "x", "label": "LABEL_1"})]).wanted == [[1]]
    with pytest.raises(DataError, match="a record: the label 'good' is none that the model knows: bad, fine"):
        classify(named(model, "bad", "fine"), [record({"text": "x", "label": "good"})])
    with pytest.raises(InputError, match="a head of kind 'masked_language_model' names no labels"):
        classify(tiny("bert:tiny", "masked"), [record({"text": "x", "label": "good"})])
