"""WordPiece out of a vocab.txt: transformers' ids under every switch, lines as they are meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, BertTokenizer

from anyformer import text

WORD_PIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "é", "e", ".", "日"]


def vocab_txt(directory: Path, tokens: list[str], ending: str = "\n") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_bytes("".join(token + ending for token in tokens).encode())
    return directory


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
    ],
)
def test_word_piece_vocabularies_encode_as_in_transformers(
    config: dict[str, object], minilm: Path, tmp_path: Path, hard_texts: list[str]
) -> None:
    """A bare vocab.txt, MiniLM's, under every combination of BERT's switches; and its save loads in transformers."""
    full = AutoTokenizer.from_pretrained(minilm).get_vocab()
    vocab_txt(tmp_path, sorted(full, key=lambda token: full[token]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = text.load(tmp_path), BertTokenizer.from_pretrained(tmp_path)
    assert ours is not None
    ours.save(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for each in hard_texts:
        ids = ours.encode(each)
        assert ids == theirs.encode(each) == saved.encode(each)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_word_piece_lines_may_end_either_way(tmp_path: Path) -> None:
    """Windows line endings, a missing last newline and separators inside a token are all read as lines are meant."""
    plain = text.load(vocab_txt(tmp_path / "a", WORD_PIECE))
    windows = text.load(vocab_txt(tmp_path / "b", WORD_PIECE, "\r\n"))
    odd = text.load(vocab_txt(tmp_path / "c", [*WORD_PIECE, "x\u2028y", "z"]))
    assert plain is not None and windows is not None and odd is not None
    assert plain.encode("The cats. 日") == windows.encode("The cats. 日") == [2, 5, 6, 7, 10, 11, 3]
    assert odd.encode("z") == [2, 13, 3]


def test_special_tokens_are_berts_where_nothing_names_them(tmp_path: Path) -> None:
    """The roles are known without a configuration, as in transformers; a configuration's own come first."""
    ours = text.read(vocab_txt(tmp_path, WORD_PIECE))
    assert ours.special_tokens == BertTokenizer.from_pretrained(tmp_path).special_tokens_map
    assert (ours.pad, ours.bos) == (0, None)
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "the", "mask_token": "<mask>"}')
    named, theirs = text.read(tmp_path), BertTokenizer.from_pretrained(tmp_path)
    assert named.special_tokens == theirs.special_tokens_map
    assert named.encode("the <mask> cats") == theirs.encode("the <mask> cats") == [2, 5, 12, 6, 7, 3]
