"""Texts and records as ids, and back from a corpus on disk."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import text
from anyformer.data import Document, encode_documents, encode_records, open_corpus, read_manifest, tokens, write_corpus

DOCUMENTS = [Document("a", "hello\n"), Document("b", "wörld\n", "validation"), Document("c", "again")]


def write(directory: Path, tokenizer: Any, **options: Any) -> None:
    """The documents above as a corpus."""
    encode = partial(encode_documents, tokenizer=tokenizer)
    write_corpus(directory, DOCUMENTS, encode, vocabulary=tokenizer.vocabulary_size, **{"about": {}, **options})


def test_a_corpus_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Each split has its documents end to end, begun and ended by their tokens, and the bytes of its text."""
    tokenizer = text.byte_level()
    write(tmp_path, tokenizer, about={"encoding": ["utf-8"]})
    train, validation = open_corpus(tmp_path, "train"), open_corpus(tmp_path, "validation")
    assert isinstance(train.tokens, np.memmap) and train.tokens.dtype == np.uint16
    begin, end = tokenizer.bos, tokenizer.eos
    wanted = [begin, *tokenizer.encode("hello\n"), end, begin, *tokenizer.encode("again"), end]
    assert train.tokens.tolist() == wanted and train.starts.tolist() == [0, 8]
    assert train.bytes == 11 and train.targets == 11 + 2
    assert validation.bytes == 7 and tokenizer.decode(validation.tokens.tolist()) == "wörld\n"
    assert read_manifest(tmp_path)["encoding"] == ["utf-8"]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5), st.integers(1, 20))
def test_long_texts_are_tokenised_in_parts_and_come_out_whole(texts: list[str], part: int) -> None:
    """Parts end with lines; only the first begins a document, and the ids decode to the text."""
    tokenizer = text.byte_level()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "PART", part)
        parts = list(encode_documents([Document("", content) for content in texts], tokenizer))
    assert sum(one.is_first for one in parts) == len(texts)
    assert sum(one.bytes for one in parts) == sum(len(content.encode()) for content in texts)
    assert tokenizer.decode([id for one in parts for id in one.columns["tokens"]]) == "".join(texts)
    assert sum(list(one.columns["tokens"]).count(tokenizer.eos or -1) for one in parts) == 2 * len(texts)


def test_a_large_vocabulary_takes_four_bytes_an_id(tmp_path: Path) -> None:
    """Ids beyond 65,535 do not wrap around."""

    class Large:
        vocabulary_size, bos, eos = 70_001, 70_000, None

        def encode_batch(self, texts: list[str], special: bool = True) -> list[list[int]]:
            return [[69_999] for _ in texts]

    write(tmp_path, Large())
    assert open_corpus(tmp_path, "train").tokens.tolist() == [70_000, 69_999, 70_000, 69_999]


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 99), min_size=1), st.lists(st.integers(0, 99))), max_size=9),
    st.integers(1, 4),
)
@settings(max_examples=40)
def test_records_keep_their_columns_side_by_side(pairs: list[tuple[list[int], list[int]]], at_once: int) -> None:
    """Each record reads back with its own sequence of every column, empty ones too; what has no columns is counted."""
    documents = [Document(str(index), "", fields={"pair": pair}) for index, pair in enumerate(pairs)]

    def columns(given: Sequence[Document]) -> list[dict[str, list[int]]]:
        return [dict(zip("ab", each.fields["pair"])) if each.fields["pair"][0][0] < 90 else {} for each in given]

    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as place:
        patch.setattr(tokens, "RECORDS_AT_ONCE", at_once)
        write_corpus(Path(place), documents, partial(encode_records, encode=columns), vocabulary=100, about={})
        kept = [pair for pair in pairs if pair[0][0] < 90]
        corpus = open_corpus(Path(place), "train")
        assert corpus.documents == len(kept)
        for name, side in zip("ab", (0, 1)):
            assert [corpus.columns[name][i].tolist() for i in range(len(kept))] == [pair[side] for pair in kept]
            assert not kept or corpus.columns[name].lengths.tolist() == [len(pair[side]) for pair in kept]
        said = read_manifest(Path(place))["splits"].get("train", {"left_out": 0})
        assert said["left_out"] == len(pairs) - len(kept)
