"""Windows cut from a corpus: nothing lost, nothing wasted, nothing leaking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anyformer.data import NO_TARGET, Column, Corpus, Records, Windows

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def corpus(lengths: list[int]) -> Corpus:
    """Documents of these lengths whose ids all differ, so that each token can be recognised."""
    total = sum(lengths)
    return Corpus({"tokens": Column(np.arange(1, total + 1, dtype="<u2"), np.cumsum([0, *lengths[:-1]]))}, total)


@given(lengths, st.integers(1, 30))
def test_every_token_stands_in_exactly_one_place(lengths: list[int], width: int) -> None:
    """The windows end to end are the corpus, and then padding."""
    packed = corpus(lengths)
    windows = list(Windows(packed, width))
    stream = np.concatenate([window.tokens for window in windows])
    assert all(len(window.tokens) == len(window.targets) == width for window in windows)
    assert stream[: len(packed.tokens)].tolist() == packed.tokens.tolist()
    assert len(stream) - len(packed.tokens) < width
    assert sum(window.filled for window in windows) == len(packed.tokens)


@given(lengths, st.integers(1, 30))
def test_every_token_but_the_first_of_a_document_is_a_target_once(lengths: list[int], width: int) -> None:
    """Also where a window cuts a document; so the loss over all windows is the loss of the text."""
    packed = corpus(lengths)
    targets = np.concatenate([window.targets for window in Windows(packed, width)])
    wanted = np.delete(packed.tokens, packed.starts)
    assert targets[targets != NO_TARGET].tolist() == wanted.tolist()
    assert len(wanted) == packed.targets


@given(lengths, st.integers(1, 30))
def test_no_target_and_no_sight_crosses_a_document(lengths: list[int], width: int) -> None:
    """A target is the id that follows in the same document; the lengths of a row part its tokens by document."""
    packed = corpus(lengths)
    document_of = np.repeat(np.arange(len(lengths)), lengths)
    for window in Windows(packed, width):
        assert sum(window.documents) == width and min(window.documents) > 0
        for piece in np.split(window.tokens, np.cumsum(window.documents)[:-1]):
            assert len({-1 if token == 0 else document_of[token - 1] for token in piece}) == 1
        for token, target in zip(window.tokens, window.targets):
            if target != NO_TARGET:
                assert target == token + 1 and document_of[target - 1] == document_of[token - 1]


@given(st.lists(st.integers(1, 400), min_size=40, max_size=60), st.integers(1, 16))
def test_padding_is_less_than_two_percent(lengths: list[int], width: int) -> None:
    """Only the last window has any, so of fifty windows or more it is less than one in fifty."""
    packed = corpus(lengths)
    windows = Windows(packed, width)
    assume(len(windows) > 50)
    assert 1 - len(packed.tokens) / (len(windows) * width) < 0.02


def test_there_is_no_window_beyond_the_last() -> None:
    """A window is not silently empty."""
    windows = Windows(corpus([5]), 4)
    assert len(windows) == 2
    with pytest.raises(IndexError):
        windows[2]


def test_records_are_as_large_as_what_is_read_of_them() -> None:
    """Columns beside what a model reads, such as labels, do not count."""
    ids, labels = Column(np.arange(7), np.array([0, 3])), Column(np.arange(2), np.array([0, 1]))
    records = Records(Corpus({"tokens": ids, "label": labels}, 0), ("tokens",))
    assert records.sizes.tolist() == [3, 4] and [records[0].size, records[1].size] == [3, 4]
    assert records[1]["tokens"].tolist() == [3, 4, 5, 6] and records[1]["label"].tolist() == [1]
