"""A corpus on disk: tokenised once, memory-mapped, checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyformer import text
from anyformer.data import Document, encode_documents, open_corpus, read_manifest, tokens, write_corpus
from anyformer.errors import DataError

DOCUMENTS = [Document("a", "hello\n"), Document("b", "wörld\n", "validation"), Document("c", "again")]


def test_a_corpus_reads_back_as_it_was_written(tmp_path: Path) -> None:
    """Each split has its documents end to end, begun and ended by their tokens, and the bytes of its text."""
    tokenizer = text.byte_level()
    seen: list[int] = []
    write_corpus(tmp_path, DOCUMENTS, tokenizer, about={"encoding": ["utf-8"]}, advance=seen.append)
    train, validation = open_corpus(tmp_path, "train"), open_corpus(tmp_path, "validation")
    assert isinstance(train.tokens, np.memmap) and train.tokens.dtype == np.uint16
    begin, end = tokenizer.bos, tokenizer.eos
    wanted = [begin, *tokenizer.encode("hello\n"), end, begin, *tokenizer.encode("again"), end]
    assert train.tokens.tolist() == wanted and train.starts.tolist() == [0, 8]
    assert train.bytes == 11 and train.targets == 11 + 2
    assert validation.bytes == 7 and tokenizer.decode(validation.tokens.tolist()) == "wörld\n"
    assert sum(seen) == 18 and read_manifest(tmp_path)["encoding"] == ["utf-8"]


@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5), st.integers(1, 20))
def test_long_texts_are_tokenised_in_parts_and_come_out_whole(texts: list[str], part: int) -> None:
    """Parts end with lines; only the first begins a document, and the ids decode to the text."""
    tokenizer = text.byte_level()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "PART", part)
        parts = list(encode_documents([Document("", content) for content in texts], tokenizer))
    assert sum(one.is_first for one in parts) == len(texts)
    assert sum(one.bytes for one in parts) == sum(len(content.encode()) for content in texts)
    assert tokenizer.decode([id for one in parts for id in one.ids]) == "".join(texts)
    assert sum(one.ids.count(tokenizer.eos or -1) for one in parts) == 2 * len(texts)


def test_a_large_vocabulary_takes_four_bytes_an_id(tmp_path: Path) -> None:
    """Ids beyond 65,535 do not wrap around."""

    class Large:
        vocabulary_size, bos, eos = 70_001, 70_000, None

        def encode_batch(self, texts: list[str], special: bool = True) -> list[list[int]]:
            return [[69_999] for _ in texts]

    write_corpus(tmp_path, DOCUMENTS, Large(), about={})
    assert open_corpus(tmp_path, "train").tokens.tolist() == [70_000, 69_999, 70_000, 69_999]


def test_a_damaged_corpus_is_named(tmp_path: Path) -> None:
    """A file cut short, or none at all, is not read as if it were whole."""
    with pytest.raises(DataError, match="holds no tokenised corpus"):
        open_corpus(tmp_path, "train")
    write_corpus(tmp_path, DOCUMENTS, text.byte_level(), about={})
    whole = (tmp_path / "train.tokens").read_bytes()
    (tmp_path / "train.tokens").write_bytes(whole[:-2])
    with pytest.raises(DataError, match=r"train.tokens should hold 30 bytes and holds 28"):
        open_corpus(tmp_path, "train")
