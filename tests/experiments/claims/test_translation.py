"""Translation: alignments of made-up pairs are found, and the verdict comes out each way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anyformer.errors import ExperimentError
from anyformer.experiments.claims import translation
from anyformer.experiments.claims.translation import END, LONGEST, PAD, Pairs
from anyformer.experiments.experiment import Lab


def _reversed_pairs(rows: int = 300, length: int = 5, words: int = 20) -> Pairs:
    """A language in which every word has one other for it, and all stand the other way round."""
    drawn = torch.randint(words, (rows, length), generator=torch.Generator().manual_seed(0)) + END + 1
    source, target = torch.full((2, rows, LONGEST), PAD)
    source[:, :length], target[:, :length] = drawn, drawn.flip(1) + words
    said = [([f"a{word}" for word in one], [f"b{word}" for word in other]) for one, other in zip(drawn, drawn.flip(1))]
    return Pairs(source, target, said)


def test_model_1_finds_who_belongs_to_whom() -> None:
    """Where each word always becomes the same other one, statistics link them, though all stand in reverse."""
    pairs = _reversed_pairs()
    once = (pairs.source[:, :, None] == pairs.source[:, None, :]).sum(2) == 1
    found = translation.links(pairs)
    for place in range(5):
        linked = found[:, :5, 4 - place].int().argmax(1)
        assert (linked == place)[once[:, place]].float().mean() > 0.95
    assert not found[:, 5:].any() and not found[:, :, 5:].any()


def test_agreement_is_the_share_of_linked_words_that_are_looked_at() -> None:
    """The diagonal is right about the middle word alone of five that stand in reverse."""
    pairs = _reversed_pairs(rows=2)
    reference = torch.zeros(2, LONGEST, LONGEST, dtype=torch.bool)
    reference[0, :5, :5] = torch.eye(5, dtype=torch.bool).flip(0)
    assert translation.agreement(translation.diagonal(pairs), reference).tolist() == pytest.approx([1 / 5])


def test_anchors_are_the_same_word_once_on_either_side() -> None:
    """A word that stands twice is no anchor, nor is a sign."""
    source, target = torch.full((2, 1, LONGEST), PAD)
    source[0, :4], target[0, :4] = torch.tensor([[5, 6, 6, 7], [7, 6, 5, 8]])
    pairs = Pairs(source, target, [(["x", "y", "y", "."], [".", "y", "x", "z"])])
    assert translation.anchors(pairs).nonzero().tolist() == [[0, 0, 2]]


def test_at_a_place_the_words_before_it_are_read_and_it_is_said() -> None:
    """Targets end with an end, padding is not asked for."""
    given = translation.inputs(torch.tensor([[9, 9, PAD]]), torch.tensor([[5, 6, PAD]]))
    assert given["tokens"].tolist() == [[translation.START, 5, 6, PAD]]
    assert given["targets"].tolist() == [[5, 6, END, -100]]


def test_without_pairs_it_says_what_it_needs(tmp_path: Path) -> None:
    """One sentence, for no file and for one of too few pairs."""
    with pytest.raises(ExperimentError, match="needs pairs: --data"):
        translation.read_pairs(Lab(tmp_path))
    (tmp_path / "few.tsv").write_text("one two three\teins zwei drei\n")
    with pytest.raises(ExperimentError, match="has 1 short pairs"):
        translation.read_pairs(Lab(tmp_path, data=tmp_path / "few.tsv"))


def _found(attention: float, low: float, high: float) -> dict[str, Any]:
    return {"attention": attention, "diagonal": attention - (low + high) / 2, "low": low, "high": high}


@pytest.mark.parametrize(
    ("anchors", "statistics", "word"),
    [
        ((0.9, 0.2, 0.4), (0.8, 0.2, 0.3), "holds"),
        ((0.3, -0.4, -0.2), (0.8, 0.2, 0.3), "does not hold at this scale"),
        ((0.9, 0.2, 0.4), (0.6, -0.1, 0.1), "unclear"),
        ((0.4, 0.1, 0.2), (0.4, 0.1, 0.2), "unclear"),
    ],
)
def test_comes_out_each_way(anchors: tuple[float, ...], statistics: tuple[float, ...], word: str) -> None:
    """Better than the diagonal by both; worse by one; within the noise by one; better, and still mostly wrong."""
    assert translation.judge({"anchors": _found(*anchors), "statistics": _found(*statistics)}).word == word
