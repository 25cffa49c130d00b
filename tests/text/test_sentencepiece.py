"""SentencePiece models: SentencePiece's own ids and texts, transformers' of the same directory, damage told."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2
from transformers import AutoTokenizer
from vocabularies import ordinary_marks, sentencepiece_model, writing

from anyformer import text
from anyformer.errors import TextError
from anyformer.text import Tokenizer
from anyformer.text.sentencepiece import Pieces, build, parse

SYMBOLS = ("<sep>", "=>", "foo")
LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "split_digits": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
GEMMA = dict(
    LLAMA,
    add_dummy_prefix=False,
    user_defined_symbols=["<mask>", "\n\n", "▁▁"],
    pad_id=0,
    eos_id=1,
    bos_id=2,
    unk_id=3,
    bos_piece="<bos>",
    eos_piece="<eos>",
)
T5 = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gemma": GEMMA,
    "t5": T5,
    "xlm-roberta": {"model_type": "unigram", "character_coverage": 0.98},
    "unigram with bytes": {
        "model_type": "unigram",
        "byte_fallback": True,
        "normalization_rule_name": "nfkc",
        "remove_extra_whitespaces": False,
        "vocab_size": 1000,
    },
    "unigram, lower case, symbols": {
        "model_type": "unigram",
        "normalization_rule_name": "nmt_nfkc_cf",
        "user_defined_symbols": SYMBOLS,
    },
    "unigram of several words": {
        "model_type": "unigram",
        "split_by_whitespace": False,
        "normalization_rule_name": "identity",
    },
    "bpe, normalised, symbols": {"model_type": "bpe", "user_defined_symbols": SYMBOLS},
    "bpe, lower case": {"model_type": "bpe", "normalization_rule_name": "nfkc_cf", "remove_extra_whitespaces": False},
}
#: Accents apart, Korean in letters, half-width kana with marks, joined emoji, marks after what is replaced.
MARKED = [
    "Ti\u1ec7\u0302ng Vie\u0323\u0302t ca\u0301",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "ｶﾞﾊﾟ",
    "👩\u200d💻²\u200d½\u0301",
]


@lru_cache
def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


@lru_cache
def built(model: bytes, everywhere: bool = True) -> Tokenizer:
    return Tokenizer(build(parse(model), everywhere))


@lru_cache
def pieces_of(model: bytes) -> Pieces:
    return parse(model)


def directory(path: Path, name: str, model: bytes, **files: object) -> Path:
    (path / name).write_bytes(model)
    for stem, content in files.items():
        (path / f"{stem}.json").write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", MODELS)
@example(written="<sep>x => foo<sep>=>bar y")
@example(written="  two  spaces, \t tab\n\n and the end  ")
@example(written="Vie\u0323\u0302t")
@example(written=MARKED[1])
@example(written=MARKED[2])
@example(written=MARKED[3])
@given(written=writing)
@settings(max_examples=80)
def test_encoding_and_decoding_are_sentencepieces(name: str, written: str) -> None:
    """The same ids and the same text from them, for any text but those written in control tokens, for BPE and unigram
    models, with bytes and without, under every normalisation, around symbols. Of two equally good paths of a unigram
    model either is right: sums in 32 and 64 bits fall differently."""
    model = sentencepiece_model(**MODELS[name])
    theirs, pieces, ours = processor(model), pieces_of(model), built(model)
    examples = ["Vie\u0323\u0302t", *MARKED]
    assume(written in examples or ordinary_marks(written))
    assume(not any(token in written for token in ("\ufff8", "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>")))
    ids, expected = ours.encode(written), theirs.encode(written)
    assume([pieces.tokens[id] for id in ids] not in [[symbol] for symbol in SYMBOLS])  # alone, without a space before
    if ids != expected:
        assert pieces.unigram
        assert [pieces.tokens[id] for id in ids] != [pieces.tokens[id] for id in expected]
        assert "".join(pieces.tokens[id] for id in ids) == "".join(pieces.tokens[id] for id in expected)
        paths = [sum(pieces.scores[id] for id in each) for each in (ids, expected)]
        assert paths[0] == pytest.approx(paths[1], abs=1e-4)
    if theirs.unk_id() not in expected:
        assert ours.decode(expected) == theirs.decode(expected)


def test_every_character_is_mapped_as_sentencepiece_maps_it() -> None:
    """All of Unicode's basic plane, each between two letters, under the normalisation that most models have."""
    model = sentencepiece_model(model_type="unigram", normalization_rule_name="nmt_nfkc_cf")
    # One decomposes to two accents, whose order differs; the other one is no character.
    codes = [code for code in range(0x10000) if not 0xD800 <= code < 0xE000 and code not in (0x344, 0xFFF8)]
    texts = [f"a{chr(code)}b" for code in codes]
    differing = zip(codes, built(model).encode_batch(texts), processor(model).encode(texts), strict=True)
    assert [hex(code) for code, ids, expected in differing if ids != expected] == []


def test_a_space_comes_first_once_or_in_every_part() -> None:
    """Before a text there is always a space, even before another one; after a control token only where it is asked for
    everywhere."""
    model = sentencepiece_model(**LLAMA)
    pieces = parse(model).tokens
    once, everywhere = built(model, everywhere=False), built(model)
    for each in ("if x", " if x", "  if"):
        assert once.encode(each) == everywhere.encode(each) == processor(model).encode(each)
    assert [pieces[id] for id in once.encode("if</s>if")] == ["▁if", "</s>", "if"]
    assert [pieces[id] for id in everywhere.encode("if</s>if")] == ["▁if", "</s>", "▁if"]
    assert once.decode(once.encode("if</s>if"), skip_special=False) == "if</s>if"


DIRECTORIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama, legacy": (
        "tokenizer.model",
        LLAMA,
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizer", "legacy": True, "add_bos_token": True}},
    ),
    "llama": (
        "tokenizer.model",
        LLAMA,
        {
            "tokenizer_config": {
                "tokenizer_class": "LlamaTokenizerFast",
                "legacy": False,
                "add_bos_token": True,
                "add_eos_token": True,
                "added_tokens_decoder": {"800": {"content": "<new>", "special": True}},
            }
        },
    ),
    "gemma": (
        "tokenizer.model",
        {**GEMMA, "user_defined_symbols": ["<mask>", "\n\n", "▁▁"]},
        {"tokenizer_config": {"tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "mask_token": "<mask>"}},
    ),
    "t5": ("spiece.model", T5, {"config": {"model_type": "t5"}, "tokenizer_config": {"extra_ids": 20}}),
    "xlm-roberta": ("sentencepiece.bpe.model", {"model_type": "unigram"}, {"config": {"model_type": "xlm-roberta"}}),
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories_encode_as_in_transformers(name: str, tmp_path: Path, hard_texts: list[str]) -> None:
    """Ids shifted, sentinels after them, tokens around a text, special tokens by role: as the reference has them; and
    what is saved gives the same again. The reference puts no space before a text that begins with one, and maps an
    accent away with its letter; those texts are compared with SentencePiece's own instead."""
    file, options, files = DIRECTORIES[name]
    directory(tmp_path, file, sentencepiece_model(**options), **files)
    ours, theirs = text.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours is not None
    ours.save(tmp_path / "saved")
    again = text.read(tmp_path / "saved")
    plain = [each for each in hard_texts if each.isascii() or (ordinary_marks(each) and "\u0301" not in each)]
    plain = [each for each in plain if not each.startswith(" ") and "\u200d" not in each]
    assert len(plain) > 30
    for each in [*plain, "a <extra_id_0> b<extra_id_3>.", "x<mask> y", "the end</s>"]:
        ids = theirs.encode(each)
        assert ours.encode(each) == again.encode(each) == ids
        assert ours.encode(each, special=False) == theirs.encode(each, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.vocabulary_size == len(theirs)


@pytest.mark.parametrize(
    ("file", "options", "ids"),
    [("tokenizer.model", LLAMA, (1, 2)), ("spiece.model", T5, (None, 1)), ("sentencepiece.bpe.model", {}, (0, 2))],
)
def test_a_file_alone_is_of_the_model_that_names_it_so(
    file: str, options: dict[str, Any], ids: tuple[int | None, int], tmp_path: Path
) -> None:
    """Without any configuration: Llama's, T5's and XLM-R's way, with the special tokens that the file names."""
    model = sentencepiece_model(**options)
    ours = text.read(directory(tmp_path, file, model))
    begin, end = ids
    assert (ours.bos, ours.eos) == ids
    encoded = ours.encode("if x")
    assert encoded[0] == begin or begin is None
    assert (encoded[-1] == end) == (file != "tokenizer.model")
    size = len(parse(model).tokens)
    assert (
        ours.vocabulary_size == size + {"tokenizer.model": 0, "spiece.model": 100, "sentencepiece.bpe.model": 2}[file]
    )


def proto(**options: Any) -> Any:
    return sentencepiece_model_pb2.ModelProto.FromString(sentencepiece_model(**options))


def test_fields_are_read_as_protobuf_reads_them() -> None:
    """Every piece, score and type, and the normaliser, equal what the protocol buffer library reads."""
    expected = proto(**T5)
    pieces = parse(expected.SerializeToString())
    assert pieces.tokens == [piece.piece for piece in expected.pieces]
    assert pieces.scores == [piece.score for piece in expected.pieces]
    assert pieces.types == [piece.type for piece in expected.pieces]
    assert pieces.charsmap == expected.normalizer_spec.precompiled_charsmap
    assert pieces.roles == {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}


def changed(**changes: Any) -> bytes:
    model = proto(**LLAMA)
    for name, value in changes.items():
        setattr(model.trainer_spec, name, value)
    return model.SerializeToString()


def with_piece(**piece: Any) -> bytes:
    model = proto(**LLAMA)
    model.pieces.add(**piece)
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: b"", r"no SentencePiece model: it has no pieces"),
        (lambda: sentencepiece_model(**LLAMA)[:-1], r"no SentencePiece model: it breaks off inside the field that"),
        (lambda: b"\x0a\x02\x0a\x7f", r"no SentencePiece model: it breaks off inside the field that begins at byte 4"),
        (lambda: b"\x0a\x02\x0a\xff", r"no SentencePiece model: the number at byte 3 has no end"),
        (lambda: b"\x0a\x03\x0a\x01\xff", r"no SentencePiece model: byte 4 is not UTF-8"),
        (lambda: b"\x0f", r"no SentencePiece model: byte 1 begins a field of kind 7"),
        (lambda: b"\x08\x01", r"no SentencePiece model: field 1, at byte 1, is of kind 0 instead of 2"),
        (lambda: b"\xff" * 12, r"no SentencePiece model: the number at byte 0 has no end"),
        (lambda: changed(model_type=3), r"tokenizer\.model: it is neither a unigram model nor BPE"),
        (lambda: changed(treat_whitespace_as_suffix=True), r"writes spaces after words"),
        (lambda: changed(model_type=1, unk_id=-1), r"the unigram vocabulary has no unknown token"),
        (lambda: with_piece(piece="▁the", score=0), r"pieces are the same"),
        (lambda: with_piece(piece="▁thee", type=5), r"the piece '▁thee' is marked as unused"),
        (lambda: with_piece(piece="ỻ", type=5), r"the piece 'ỻ' is marked as unused"),
    ],
)
def test_what_cannot_be_read_is_told(model: Any, message: str, tmp_path: Path) -> None:
    """Damage is named with its byte, what is beyond this by what it is, and always the file."""
    with pytest.raises(TextError, match=message) as error:
        text.load(directory(tmp_path, "tokenizer.model", model()))
    assert "tokenizer.model" in str(error.value)
    assert "\n" not in str(error.value)


@given(at=st.integers(0, 5000), byte=st.integers(0, 255), cut=st.integers(0, 3))
@settings(max_examples=100)
def test_damage_never_gets_out_as_anything_else(
    at: int, byte: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Bytes that are changed or missing give a tokenizer that works, or one sentence."""
    path = tmp_path_factory.mktemp("damaged")
    model = sentencepiece_model(**T5)
    try:
        ours = text.read(directory(path, "spiece.model", model[:at] + bytes([byte]) + model[at + cut :]))
        assert ours.encode("a ½ é")
    except TextError as error:
        assert "spiece.model" in str(error)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config": {"tokenizer_class": "AlbertTokenizer"}}, r"belongs to a AlbertTokenizer, .* add its tok"),
        ({"config": {"model_type": "m2m_100"}}, r"belongs to a m2m_100"),
        ({"tokenizer_config": {"extra_ids": -1}}, r"spiece\.model: extra_ids beside it is -1"),
        ({"added_tokens": {"<new>": 5000}}, r"'<new>' should be id 5000, but is 900"),
    ],
)
def test_what_does_not_fit_the_file_is_told(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A class that lays out its ids otherwise, sentinels that cannot be, tokens beside that leave a gap."""
    with pytest.raises(TextError, match=message):
        text.load(directory(tmp_path, "spiece.model", sentencepiece_model(**T5), **files))
