"""Decoding token by token: equal to the library's own decoders, whatever the decoder, and never half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers import Tokenizer as Backend
from vocabularies import lines, sentencepiece_model, writing

from anyformer import text
from anyformer.text import Tokenizer
from anyformer.text.bytelevel import byte_alphabet

PIECES = ["▁", "▁▁", "▁the", "▁a", "b", "##ing", "##s", ".", ",", "'", "n't", "'m", "é", "日", " ", "x▁y", "do", "not"]
BYTE_VALUES = (0x20, 0x41, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xFF)
BYTES = [f"<0x{byte:02X}>" for byte in BYTE_VALUES]
WRITTEN = {piece: id for id, piece in enumerate([*PIECES, *BYTES])}

DECODERS = {
    "sentencepiece": decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    ),
    "gemma": decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    "metaspace": decoders.Metaspace(),
    "metaspace without a first space": decoders.Metaspace(prepend_scheme="never"),
    "word piece": decoders.WordPiece(),
    "word piece, untidied": decoders.WordPiece(cleanup=False),
    "none": None,
}
#: Decoders that need the whole text, or that are not told apart token by token here.
WHOLE = {
    "ctc": decoders.CTC(),
    "end-of-word": decoders.BPEDecoder(suffix="s"),
    "pattern": decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()]),
    "replaced once whole": decoders.Sequence([decoders.Fuse(), decoders.Replace("the▁", "a▁")]),
}


def tokenizer(decoder: decoders.Decoder | None) -> Tokenizer:
    backend = Backend(models.BPE(WRITTEN, []))
    backend.add_tokens([AddedToken("<end>", special=True), AddedToken("<added>", special=False)])
    if decoder is not None:
        backend.decoder = decoder
    return Tokenizer(backend)


def streamed(tokenizer: Tokenizer, ids: list[int], skip_special: bool = True) -> str:
    stream = tokenizer.stream(skip_special)
    return "".join(stream.push(id) for id in ids) + stream.finish()


def lossless(ids: list[int]) -> bool:
    """Whether every run of byte tokens is UTF-8: the library gives up whole runs that are not."""
    runs = [[]]
    for id in ids:
        if len(PIECES) <= id < len(WRITTEN):
            runs[-1].append(BYTE_VALUES[id - len(PIECES)])
        else:
            runs.append([])
    try:
        return all(bytes(run).decode() is not None for run in runs)
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("name", [*DECODERS, *WHOLE])
@given(ids=st.lists(st.integers(0, len(WRITTEN) + 3), max_size=12), skip_special=st.booleans())
@settings(max_examples=150, deadline=None)
def test_decoding_equals_the_librarys_and_streams_equal_both(name: str, ids: list[int], skip_special: bool) -> None:
    """Any ids, special and unknown ones among them, under each decoder; bytes that are no text apart."""
    ours = tokenizer({**DECODERS, **WHOLE}[name])
    assert streamed(ours, ids, skip_special) == ours.decode(ids, skip_special)
    if lossless(ids):
        assert ours.decode(ids, skip_special) == ours._backend.decode(ids, skip_special_tokens=skip_special)


@given(ids=st.lists(st.integers(0, 257), max_size=30))
@settings(max_examples=200, deadline=None)
def test_byte_level_decoding_equals_the_librarys(ids: list[int]) -> None:
    """Any bytes at all: what is not UTF-8 becomes U+FFFD in the very same places."""
    backend = Backend(models.BPE({character: byte for byte, character in byte_alphabet().items()}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    ours = Tokenizer(backend)
    assert ours.decode(ids) == backend.decode(ids)
    assert streamed(ours, ids) == ours.decode(ids)


def test_added_tokens_are_written_as_they_stand() -> None:
    """Under a byte-level decoder an added token is text, not bytes in disguise: 'éé' comes back as 'éé'."""
    backend = Backend(models.BPE({character: byte for byte, character in byte_alphabet().items()}, []))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens([AddedToken("éé", normalized=False), AddedToken("日 本", normalized=False)])
    assert Tokenizer(backend).decode([256, 257, 0x61]) == "éé日 本a"


def test_a_broken_run_of_bytes_costs_only_what_is_broken() -> None:
    """Byte tokens that spell 'é' and then a stray byte give 'é' and one U+FFFD, streamed and whole."""
    ours = tokenizer(DECODERS["gemma"])
    ids = [WRITTEN["<0xC3>"], WRITTEN["<0xA9>"], WRITTEN["<0xFF>"], WRITTEN["b"]]
    assert ours.decode(ids) == "é\ufffdb"
    stream = ours.stream()
    assert [stream.push(id) for id in ids] == ["", "é", "\ufffd", "b"]


def kind(name: str, directory: Path) -> Tokenizer:
    """A trained vocabulary of each kind, out of the files that it comes in."""
    match name:
        case "byte-level BPE":
            return text.train_bpe(lines(), 600)
        case "WordPiece":
            tokens = [
                "[PAD]",
                "[UNK]",
                "[CLS]",
                "[SEP]",
                "[MASK]",
                *"abcdehilnorst",
                *(f"##{each}" for each in "aeinorst"),
            ]
            (directory / "vocab.txt").write_text(
                "\n".join([*tokens, "the", "é", "##é", "日", "本", "."]), encoding="utf-8"
            )
        case "SentencePiece BPE with bytes":
            options = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
            (directory / "tokenizer.model").write_bytes(sentencepiece_model(**options))
        case "unigram":
            options = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
            (directory / "spiece.model").write_bytes(sentencepiece_model(**options))
        case "unigram with bytes":
            options = {"model_type": "unigram", "byte_fallback": True, "vocab_size": 1000}
            (directory / "sentencepiece.bpe.model").write_bytes(sentencepiece_model(**options))
    return text.read(directory)


@pytest.fixture(
    scope="module",
    params=["byte-level BPE", "WordPiece", "SentencePiece BPE with bytes", "unigram", "unigram with bytes"],
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary of each kind that text is encoded with, not a toy's."""
    return kind(request.param, tmp_path_factory.mktemp("kind"))


@given(written=writing, skip_special=st.booleans())
@settings(max_examples=100)
def test_a_streamed_text_never_shows_part_of_a_character(trained: Tokenizer, written: str, skip_special: bool) -> None:
    """Whatever is written, every push gives whole characters: no U+FFFD, and always a beginning of the whole text. All
    of it comes without waiting for the end, as every character is complete with its last token."""
    written = written.replace("\ufffd", "")
    ids = trained.encode(written)
    stream, shown, whole = trained.stream(skip_special), "", trained.decode(ids, skip_special)
    for id in ids:
        shown += stream.push(id)
        assert "\ufffd" not in shown
        assert whole.startswith(shown)
    assert stream.finish() == ""
    assert shown == whole


@given(data=st.data())
@settings(max_examples=60)
def test_any_ids_stream_to_what_they_decode_to(trained: Tokenizer, data: st.DataObject) -> None:
    """Ids that a model may write though no text encodes to them: halves of characters, special and unknown ones."""
    ids = data.draw(st.lists(st.integers(0, trained.vocabulary_size + 1), max_size=30))
    assert streamed(trained, ids) == trained.decode(ids)


def test_the_alphabet_of_bytes_is_the_librarys() -> None:
    """256 different printable characters, the ones that the library writes bytes with."""
    from tokenizers.pre_tokenizers import ByteLevel

    assert set(byte_alphabet().values()) == set(ByteLevel.alphabet())
    assert len(byte_alphabet()) == 256
