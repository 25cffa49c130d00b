"""BPE trained on the user's own text: the same every time, exact, with progress, clear about what it cannot use."""

from __future__ import annotations

from pathlib import Path

import pytest

from anyformer import text
from anyformer.errors import TextError

CORPUS = ["the cat sat on the mat; the cats sat there.\n" * 50, "naïve café über 日本語\n" * 20]


def test_the_same_text_gives_the_same_tokenizer(tmp_path: Path) -> None:
    """Twice from texts, once from the same texts in files: the very same tokenizer.json."""
    saved = []
    for number, part in enumerate(CORPUS):
        (tmp_path / f"{number}.txt").write_text(part, encoding="utf-8", newline="")
    files = [tmp_path / "0.txt", tmp_path / "1.txt"]
    for at, source in enumerate((CORPUS, iter(CORPUS), files, [CORPUS[0], files[1]])):
        text.train_bpe(source, 320).save(tmp_path / str(at))
        saved.append((tmp_path / str(at) / "tokenizer.json").read_bytes())
    assert len(set(saved)) == 1


def test_frequent_words_become_tokens() -> None:
    """What occurs most is one token; the vocabulary has the size asked for, the end of text first, every byte in it."""
    tokenizer = text.train_bpe(CORPUS, 290)
    assert tokenizer.vocabulary_size == 290
    assert len(tokenizer.encode(" the")) == 1
    assert len(tokenizer.encode(" the cat sat")) == 3
    assert tokenizer.eos == tokenizer.bos == tokenizer.pad == 0
    assert {len(tokenizer.encode(chr(code))) for code in range(128)} == {1}


def test_a_short_text_gives_a_smaller_vocabulary() -> None:
    """Pairs that occur once are not merged: there may be fewer tokens than asked for."""
    assert text.train_bpe(["abcdefg"], 5000).vocabulary_size == 257


def test_progress_counts_every_character() -> None:
    """Reading reports how far it is, never backwards, then merging begins once all is read."""
    told: list[tuple[str, int]] = []
    source = ["a b c\n" * 40_000, "", "d" * 10]
    text.train_bpe(source, 300, lambda stage, characters: told.append((stage, characters)))
    reading = [characters for stage, characters in told if stage == "reading"]
    assert len(reading) > 3
    assert reading == sorted(reading)
    assert told[-1] == ("merging", 240_010)
    assert [stage for stage, _ in told].count("merging") == 1


@pytest.mark.parametrize("vocabulary", [256, 0, -1])
def test_a_vocabulary_must_hold_the_bytes(vocabulary: int) -> None:
    """Fewer than 257 tokens cannot write every text."""
    with pytest.raises(TextError, match=f"a vocabulary of {vocabulary} is too small"):
        text.train_bpe(CORPUS, vocabulary)


@pytest.mark.parametrize("source", [[], [""], ["", ""]])
def test_there_must_be_text(source: list[str]) -> None:
    """Nothing to read is an error, not a tokenizer of bytes."""
    with pytest.raises(TextError, match="no text to train a tokenizer on"):
        text.train_bpe(source, 300)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    """Another encoding is named with its byte, a missing file with its path."""
    (tmp_path / "latin.txt").write_bytes("abc é".encode("latin-1"))
    with pytest.raises(TextError, match=r"latin\.txt is not UTF-8 at byte 4"):
        text.train_bpe([tmp_path / "latin.txt"], 300)
    with pytest.raises(TextError, match=r"cannot read .*gone\.txt: No such file"):
        text.train_bpe([tmp_path / "gone.txt"], 300)
