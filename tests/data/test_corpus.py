"""Arrays on disk that read as one, and what is said of those that are not whole."""

from __future__ import annotations

import json
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer import text
from anyformer.data import Document, Windows, encode_documents, open_corpus, shards, write_corpus
from anyformer.data.corpus import Spliced
from anyformer.errors import DataError

DOCUMENTS = [Document(f"{i}", f"document {i}\n" * (i % 5 + 1)) for i in range(20)]


def write(directory: Path) -> None:
    tokenizer = text.byte_level()
    encode = partial(encode_documents, tokenizer=tokenizer)
    write_corpus(directory, DOCUMENTS, encode, vocabulary=tokenizer.vocabulary_size, about={})


@given(st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6), st.data())
def test_arrays_spliced_are_their_concatenation(parts: list[list[int]], data: st.DataObject) -> None:
    """Every element, slice and search, empty arrays among them."""
    flat = np.array(sorted(chain.from_iterable(parts)), "<i8")
    spliced = Spliced(np.split(flat, np.cumsum([len(part) for part in parts])[:-1]))
    assert len(spliced) == len(flat) and spliced.dtype == flat.dtype
    assert [spliced[i] for i in range(-len(flat), len(flat))] == [*flat.tolist(), *flat.tolist()]
    begin, end = data.draw(st.integers(-9, 40)), data.draw(st.integers(-9, 40))
    assert spliced[begin:end].tolist() == flat[begin:end].tolist()
    assert np.diff(np.asarray(spliced), append=10).tolist() == np.diff(flat, append=10).tolist()
    for side in ("left", "right"):
        assert spliced.searchsorted(range(-1, 11), side) == flat.searchsorted(range(-1, 11), side).tolist()
    with pytest.raises(IndexError):
        spliced[len(flat)]


def test_windows_over_many_shards_are_those_over_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a document or a window lies across two of them; each shard stays a memory map."""
    write(tmp_path / "one")
    monkeypatch.setattr(shards, "SHARD", 50)
    monkeypatch.setattr(shards, "BATCH", 20)
    write(tmp_path / "many")
    one, many = open_corpus(tmp_path / "one", "train"), open_corpus(tmp_path / "many", "train")
    assert isinstance(one.tokens, np.memmap) and isinstance(many.tokens, Spliced) and len(many.tokens.arrays) > 5
    assert all(isinstance(array, np.memmap) for array in many.tokens.arrays)
    for length in (3, 16, 1000):
        pairs = list(zip(Windows(one, length), Windows(many, length), strict=True))
        assert all(a.tokens.tolist() == b.tokens.tolist() and a.documents == b.documents for a, b in pairs)
        assert all(a.targets.tolist() == b.targets.tolist() and a.filled == b.filled for a, b in pairs)
    assert [many.columns["tokens"][i].tolist() for i in range(20)] == [
        one.columns["tokens"][i].tolist() for i in range(20)
    ]


def test_a_damaged_corpus_is_named(tmp_path: Path) -> None:
    """A file cut short or missing, or no manifest at all, is not read as if it were whole."""
    with pytest.raises(DataError, match="holds no tokenised corpus"):
        open_corpus(tmp_path, "train")
    write(tmp_path)
    path = tmp_path / "00000" / "train.tokens.ids"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    with pytest.raises(
        DataError, match=rf"train.tokens.ids should hold {len(whole):,} bytes and holds {len(whole) - 2:,}"
    ):
        open_corpus(tmp_path, "train")
    path.unlink()
    with pytest.raises(DataError, match=r"train.tokens.ids should hold .* and holds 0"):
        open_corpus(tmp_path, "train")


def test_a_split_that_nothing_is_in_is_empty(tmp_path: Path) -> None:
    """It has no columns, and no documents."""
    write(tmp_path)
    assert open_corpus(tmp_path, "validation").documents == 0
    assert json.loads((tmp_path / "manifest.json").read_text())["splits"].keys() == {"train"}
