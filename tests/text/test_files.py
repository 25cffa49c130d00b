"""Tokenizers out of directories: equal to transformers', carried through a save, refused by name where broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from anyformer import text
from anyformer.errors import TextError
from anyformer.text.files import VOCABULARIES

WORD_PIECE = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "é", "e", ".", "日"]


def vocab_txt(directory: Path, tokens: list[str], ending: str = "\n") -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "vocab.txt").write_bytes("".join(token + ending for token in tokens).encode())
    return directory


def test_minilm_encodes_as_in_transformers(minilm: Path, hard_texts: list[str]) -> None:
    """The real tokenizer.json of MiniLM: ids, texts and special tokens equal the reference's, uncut and unpadded."""
    ours, theirs = text.load(minilm), AutoTokenizer.from_pretrained(minilm)
    assert ours is not None
    long = " ".join(hard_texts)
    assert len(ours.encode(long)) > 512
    for each in [*hard_texts, long]:
        ids = ours.encode(each)
        assert ids == theirs.encode(each)
        assert ours.encode(each, special=False) == theirs.encode(each, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.pad == theirs.pad_token_id
    assert ours.special_tokens == {role: str(token) for role, token in theirs.special_tokens_map.items()}
    assert ours.vocabulary_size == len(theirs)


def test_every_file_is_written_back_as_it_was(minilm: Path, tmp_path: Path) -> None:
    """A load and a save change no byte of any tokenizer file, known to us in detail or not."""
    shutil.copytree(minilm, tmp_path / "from")
    (tmp_path / "from" / "added_tokens.json").write_text('{ "unused": 99999}\r\n')
    ours = text.load(tmp_path / "from")
    assert ours is not None
    ours.save(tmp_path / "to")
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    assert {path.name for path in (tmp_path / "to").iterdir()} == set(names)
    for name in names:
        assert (tmp_path / "to" / name).read_bytes() == (tmp_path / "from" / name).read_bytes()


def test_tokens_beside_the_vocabulary_keep_their_ids(tmp_path: Path) -> None:
    """added_tokens.json and added_tokens_decoder extend vocab.txt; ids that do not follow are an error."""
    vocab_txt(tmp_path, WORD_PIECE)
    (tmp_path / "added_tokens.json").write_text('{"<new>": 12}')
    decoder = {"13": {"content": "<other>", "special": True}, "0": {"content": "[PAD]", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    ours = text.load(tmp_path)
    assert ours is not None
    assert ours.encode("cat<new><other>", special=False) == [6, 12, 13]
    assert ours.decode([6, 12, 13]) == "cat <new>"
    (tmp_path / "added_tokens.json").write_text('{"<new>": 40}')
    with pytest.raises(
        TextError, match=r"'<other>' should be id 13, but is 12 beside .*vocab\.txt; these files do not belong together"
    ):
        text.load(tmp_path)


def test_a_directory_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    """Models without text, and directories that do not exist, have no tokenizer; that is no error."""
    (tmp_path / "config.json").write_text("{}")
    assert text.load(tmp_path) is None
    assert text.load(tmp_path / "nowhere") is None


def test_where_there_must_be_a_tokenizer_every_file_looked_for_is_named(tmp_path: Path) -> None:
    """`read` says which names it looked for, and gives what `load` gives where one of them is there."""
    with pytest.raises(
        TextError, match=r"holds no tokenizer: it has none of tokenizer\.json, .*tokenizer\.model, "
    ) as error:
        text.read(tmp_path)
    assert all(name in str(error.value) for name in VOCABULARIES)
    vocab_txt(tmp_path, WORD_PIECE)
    assert text.read(tmp_path).encode("cat") == [2, 6, 3]


def test_tokenizer_json_comes_before_what_it_was_made_of(tmp_path: Path) -> None:
    """A directory with several of them is read by the one that says it all, and all of them are kept."""
    vocab_txt(tmp_path, WORD_PIECE)
    text.byte_level().save(tmp_path)
    (tmp_path / "merges.txt").write_text("no pair")
    ours = text.read(tmp_path)
    assert ours.encode("cat") == list(b"cat")
    assert {"vocab.txt", "merges.txt", "tokenizer.json"} <= ours.files.keys()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", r"tokenizer\.json is not a tokenizer"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Magic"}}', r"tokenizer\.json is not a tokenizer"),
        ("tokenizer_config.json", b"[1", r"tokenizer_config\.json is not JSON"),
        ("tokenizer_config.json", b"\xff\xfe", r"tokenizer_config\.json is not JSON"),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json is not a JSON object"),
        ("special_tokens_map.json", b"3", r"special_tokens_map\.json is not a JSON object"),
        ("vocab.txt", b"[UNK]\n\xe9\n", r"vocab\.txt is not UTF-8 at byte 6"),
        ("vocab.txt", b"a\nb\n", r"vocab\.txt has no token '\[UNK\]'"),
        ("vocab.txt", b"", r"vocab\.txt has no token '\[UNK\]'"),
        ("added_tokens.json", b'{"a": "first"}', r"added tokens beside .*vocab\.txt do not say their ids in numbers"),
        ("tokenizer_config.json", b'{"tokenizer_class": "EsmTokenizer"}', r"belongs to a EsmTokenizer"),
    ],
)
def test_broken_files_are_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    """One sentence that names the file, whichever of them is not what it should be."""
    vocab_txt(tmp_path, WORD_PIECE)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=message):
        text.load(tmp_path)


def test_a_template_in_its_own_file_wins(tmp_path: Path) -> None:
    """chat_template.jinja is the newer place; the config's is the older."""
    text.byte_level().save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "old"}))
    old = text.load(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("new é {{ eos_token }}", encoding="utf-8")
    new = text.load(tmp_path)
    assert old is not None and new is not None
    assert (old.chat([]), new.chat([])) == ("old", "new é <|endoftext|>")
    new.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").read_bytes() == (tmp_path / "chat_template.jinja").read_bytes()
