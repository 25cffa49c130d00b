"""Marian's pair of files: transformers' ids and texts, what its format cannot give."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
from transformers import MarianTokenizer
from vocabularies import ordinary_marks, sentencepiece_model

from anyformer import text
from anyformer.errors import TextError
from anyformer.text.sentencepiece import parse

CONFIG = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "fr"}


def directory(path: Path, config: dict[str, object] = CONFIG) -> Path:
    """Two models and the vocabulary of both, which lacks some pieces of either, in an order of its own."""
    pieces: list[str] = []
    for name, options in (("source", {"model_type": "unigram"}), ("target", {"model_type": "bpe"})):
        model = sentencepiece_model(**options)
        (path / f"{name}.spm").write_bytes(model)
        pieces += [piece for piece in parse(model).tokens[3:] if kept(piece)]
    tokens = ["</s>", "<unk>", *dict.fromkeys([*reversed(pieces), ">>fra<<", "漢"]), "<pad>"]
    (path / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def kept(piece: str) -> bool:
    """A choice of pieces that is the same every time."""
    return sum(map(ord, piece)) % 17 > 0


def test_the_source_is_encoded_and_both_decoded_as_in_transformers(tmp_path: Path, hard_texts: list[str]) -> None:
    """Pieces by their text, unknown where the vocabulary lacks them, a language first, the end last; unknown characters
    by their own text where the vocabulary has it."""
    ours = text.read(directory(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
        theirs = MarianTokenizer.from_pretrained(tmp_path)
    plain = [each for each in hard_texts if ordinary_marks(each) and "\u0301" not in each]
    for each in [*plain, ">>fra<< Hello there", ">>xx<<Hello", "漢 x 漢漢", "a</s>b <pad>c", ">>", ""]:
        ids = theirs.encode(each)
        assert ours.encode(each) == ids
        assert ours.encode(each, special=False) == ids[:-1]
        assert ours.decode(ids).strip() == theirs.decode(ids, skip_special_tokens=True)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocabulary_size == len(theirs)
    assert ours.encode_batch(["a b", "c"]) == [ours.encode("a b"), ours.encode("c")]


def test_a_save_is_the_same_files(tmp_path: Path) -> None:
    """No tokenizer.json can say what these files say, so none is written."""
    ours = text.read(directory(tmp_path))
    ours.save(tmp_path / "saved")
    names = {"source.spm", "target.spm", "vocab.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "saved").iterdir()} == names
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert text.read(tmp_path / "saved").encode("the end") == ours.encode("the end")


def test_what_is_missing_or_beyond_is_told(tmp_path: Path) -> None:
    """A vocabulary for each language, none at all, one without an end of text, and a damaged model."""
    directory(tmp_path, {**CONFIG, "separate_vocabs": True})
    with pytest.raises(TextError, match="a vocabulary for each language"):
        text.load(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "vocab.json").write_text('{"<unk>": 0, "<pad>": 1}')
    with pytest.raises(TextError, match=r"vocab\.json lacks the eos_token '</s>'"):
        text.load(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(TextError, match=r"source\.spm needs vocab\.json beside it"):
        text.load(tmp_path)
    directory(tmp_path)
    (tmp_path / "source.spm").write_bytes(b"\x0a\x05")
    with pytest.raises(TextError, match=r"source\.spm: it is no SentencePiece model: it breaks off"):
        text.load(tmp_path)


def test_no_more_special_tokens_are_taken(tmp_path: Path) -> None:
    """They would have no place in the files, so they are refused instead of lost."""
    ours = text.read(directory(tmp_path))
    with pytest.raises(TextError, match="takes no more special tokens, and <mask>, <x> are wanted"):
        ours.with_special({"mask_token": "<mask>"}, ["<x>"])


def test_only_strings_are_encoded(tmp_path: Path) -> None:
    """The same sentences as for any tokenizer."""
    ours = text.read(directory(tmp_path))
    with pytest.raises(TextError, match="only strings can be encoded, not int"):
        ours.encode(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TextError, match="a lone surrogate"):
        ours.encode("a\ud800")
