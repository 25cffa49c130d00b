"""The reader of config.json: every attribute is taken, at its default, or ignored for a reason, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.errors import SpecError
from anyformer.families.config import ACTIVATIONS, Config, activation_name, head_attributes
from anyformer.spec import EmbeddingHead, LanguageModelHead, TokenClassificationHead


def config(**attributes: Any) -> Config:
    return Config(attributes, "here/config.json", head_kind="embedding")


def test_what_is_taken_is_known() -> None:
    """Attributes that a family took need no other account."""
    reader = config(size=3, share=0.5, flag=True, word="x")
    assert (reader.size("size"), reader.number("share"), reader.flag("flag"), reader.text("word")) == (
        3,
        0.5,
        True,
        "x",
    )
    assert reader.finish({}, {}) == {}


def test_what_nobody_took_is_refused_by_name() -> None:
    """All unknown attributes are named, with the way to load regardless."""
    with pytest.raises(SpecError, match=r"here/config.json: .*'mystery', 'riddle'.*ignore=\['mystery', 'riddle'\]"):
        config(mystery=1, riddle=None).finish({}, {})


def test_null_is_absent() -> None:
    """A null attribute gives the default, and without one counts as missing."""
    assert config(size=None).size("size", default=7) == 7
    with pytest.raises(SpecError, match="size is missing"):
        config(size=None).size("size")


def test_one_attribute_of_two_names() -> None:
    """Either name will do; both may stand if they agree, and are both named if they do not."""
    assert config(new=4).size("old", "new") == 4
    assert config(old=4, new=4).size("old", "new") == 4
    with pytest.raises(SpecError, match="old and new are one thing and differ"):
        config(old=4, new=5).size("old", "new")


@pytest.mark.parametrize(
    ("method", "value", "wanted"),
    [
        ("size", 0, "a whole number above 0"),
        ("size", True, "a whole number above 0"),
        ("size", 2.0, "a whole number above 0"),
        ("size", "3", "a whole number above 0"),
        ("integer", -1, "a whole number"),
        ("number", "1e-5", "a number"),
        ("number", False, "a number"),
        ("flag", 1, "true or false"),
        ("text", 1, "a string"),
        ("section", [1], "an object"),
    ],
)
def test_values_of_another_kind(method: str, value: Any, wanted: str) -> None:
    """A value of the wrong kind is refused with its name, its value, and what it must be."""
    with pytest.raises(SpecError, match=f"config.json: it is .*; it must be {wanted}"):
        getattr(config(it=value), method)("it")


def test_only_the_default_is_understood() -> None:
    """An attribute that would change the model is refused at any value but its default."""
    config(is_decoder=False).finish({"is_decoder": False}, {})
    config(is_decoder=None).finish({"is_decoder": False}, {})
    with pytest.raises(SpecError, match=r"is_decoder is true; only false is understood.*ignore=\['is_decoder'\]"):
        config(is_decoder=True).finish({"is_decoder": False}, {})


def test_ignored_attributes_come_with_their_reason() -> None:
    """What is ignored and there is reported; what is read elsewhere is not."""
    reader = config(use_cache=True, temperature=0.5)
    assert reader.finish({}, {"use_cache": "the caller's choice", "other": "?"}, {"temperature"}) == {
        "use_cache": "the caller's choice"
    }


def test_objects_inside_are_accounted_for_too() -> None:
    """An unknown key inside an object is named with its path; asking twice gives the same object."""
    reader = config(outer={"inner": {"known": 1, "odd": 2}})
    reader.section("outer").section("inner").size("known")
    assert reader.section("outer").section("inner").size("known") == 1
    with pytest.raises(SpecError, match=r"'outer.inner.odd' \(af.load\(..., ignore=\['outer'\]"):
        reader.finish({}, {})


def test_activations_by_any_of_their_names() -> None:
    """Every name is read, an unknown one lists them, and the written name reads back."""
    for name, ours in ACTIVATIONS.items():
        assert config(act=name).activation("act") == ours
        assert ACTIVATIONS[activation_name(ours)] == ours
    assert config().activation("act", default="gelu_new") == "gelu_tanh"
    with pytest.raises(SpecError, match="act is 'swoosh'; known activations: relu, gelu"):
        config(act="swoosh").activation("act")


@pytest.mark.parametrize(
    ("attributes", "count"),
    [({}, 2), ({"num_labels": 5}, 5), ({"_num_labels": 3}, 3), ({"id2label": {"0": "a", "1": "b", "2": "c"}}, 3)],
)
def test_labels(attributes: dict[str, Any], count: int) -> None:
    """Two labels unless the names or the number of labels say otherwise."""
    assert config(**attributes).labels() == count


def test_the_head_that_is_asked_for() -> None:
    """Of a family's heads, the one of the architecture's kind."""
    heads = (LanguageModelHead(), EmbeddingHead())
    assert config().head(*heads) == EmbeddingHead()
    with pytest.raises(SpecError, match="no head of kind 'embedding'"):
        config().head(LanguageModelHead())


def test_attributes_of_heads() -> None:
    """Labels are written with names, a tied head with its attribute, an embedding head with nothing."""
    written = head_attributes(TokenClassificationHead(labels=2))
    assert written == {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    assert head_attributes(LanguageModelHead(tied=True)) == {"tie_word_embeddings": True}
    assert head_attributes(EmbeddingHead()) == {}
