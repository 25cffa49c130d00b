"""Layers are judged by where each thing is there; grammar is read as Python reads it."""

from __future__ import annotations

import pytest

from anyformer.experiments.claims.layers import DEEPEST, _grammar, judge, reached

LAYERS = 20


def curve(at: int) -> list[list[float]]:
    """A probe that reads nothing before a layer and everything from it on."""
    return [[0.2, 0.2] if layer < at else [0.9, 0.9] for layer in range(LAYERS + 1)]


def numbers(token: int, topic: int, fact: int, steps: int, settled: float) -> dict:
    def moved(at: int) -> dict:
        return {"subject": [1.0] * at + [0.0] * (LAYERS - at), "end": [0.0] * at + [1.0] * (LAYERS - at)}

    return {
        "layers": LAYERS,
        "curves": {"token class": curve(token), "topic": curve(topic)},
        "recall": {"fact": moved(fact), "two steps": moved(steps)},
        "lens": {"settled": [settled - 2, settled, settled + 1]},
    }


def test_layers_are_found() -> None:
    """The first layer at which a thing is there."""
    assert reached(numbers(3, 7, 11, 14, 18)) == {"token class": 3, "topic": 7, "fact": 11, "two steps": 14, "lens": 18}


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ((3, 7, 11, 14, 18), "holds"),
        ((9, 4, 11, 14, 18), "does not hold at this scale"),
        ((3, 7, 7, 14, 18), "unclear"),
        ((3, 7, LAYERS, 14, 18), "unclear"),
    ],
    ids=["in order", "out of order", "at once", "not recalled"],
)
def test_each_way(found: tuple, word: str) -> None:
    """In order it holds; out of order it does not; what lies together, or is not recalled, tells nothing."""
    assert judge(numbers(*found)).word == word


def test_grammar_is_pythons() -> None:
    """Classes of characters and the depth of their statements."""
    source = "def f(x):  # why\n    if x:\n        return 'a' + 1\n"
    classes, nesting = _grammar(source)
    pieces = ("def", "f(", "(", "# why", "if", "'a'", "1")
    assert [classes[source.index(piece)] for piece in pieces] == [2, 1, 3, 6, 2, 4, 5]
    assert [nesting[source.index(piece)] for piece in ("def", "if", "return")] == [1, 2, 3]
    deep = "".join("    " * depth + "if x:\n" for depth in range(12)) + "    " * 12 + "y = 1\n"
    assert max(_grammar(deep)[1]) == DEEPEST
