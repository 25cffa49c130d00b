"""Tokenizers out of GGUF metadata: each kind of vocabulary against the library that made it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, models, pre_tokenizers
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from vocabularies import ordinary_marks

from anyformer import text
from anyformer.checkpoints.gguf import GgufFile
from anyformer.errors import TextError
from anyformer.text import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog; the dog isn't amused, it's 12 o'clock.",
    "Wie viel Holz hackt der Hacker? Äußerst viel, sagt die Müllerin über öde Flüße.",
    "def tokenize(text): return [piece for piece in text.split() if piece]",
    "Быстрая лиса прыгает через ленивую собаку. 日本語の文章 もあります。",
] * 20


LICENSE = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")


def metadata(kind: str, tokens: list[str], **keys: Any) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in {"model": kind, "tokens": tokens, **keys}.items()}


def sentencepiece_model(**options: Any) -> tuple[sentencepiece.SentencePieceProcessor, dict[str, Any]]:
    """A model trained by SentencePiece itself, and the same model as a GGUF file holds it."""
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=file, minloglevel=2, hard_vocab_limit=False, **options
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(file.getvalue())
    keys: dict[str, Any] = {
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "bos_token_id": proto.trainer_spec.bos_id,
        "eos_token_id": proto.trainer_spec.eos_id,
        "unknown_token_id": proto.trainer_spec.unk_id,
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
        "precompiled_charsmap": list(proto.normalizer_spec.precompiled_charsmap),
    }
    return sentencepiece.SentencePieceProcessor(model_proto=file.getvalue()), keys


def piecewise(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = tokenizer.stream()
    return "".join(stream.push(id) for id in ids) + stream.finish()


@pytest.mark.parametrize("space_first", [True, False])
def test_sentencepiece_bpe_is_sentencepieces(space_first: bool, hard_texts: list[str]) -> None:
    """Kind `llama`: merges that follow from the scores, bytes for unknown characters, give the same ids and text."""
    theirs, keys = sentencepiece_model(
        model_type="bpe",
        vocab_size=600,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=space_first,
    )
    ours = text.from_gguf(metadata("llama", **keys))
    for each in [*hard_texts, *CORPUS[:4], " two  spaces ", ""]:
        ids = theirs.encode(each)
        assert ours.encode(each) == [1, *ids]
        assert ours.decode([1, *ids, 2]) == theirs.decode(ids) == each
        assert piecewise(ours, ids) == each


def test_what_fills_a_padded_vocabulary_is_never_encoded(hard_texts: list[str]) -> None:
    """Kind `llama`: pieces marked as unused that no merge gives, as converters write them after the vocabulary, have
    their ids and change no text's; one that texts could become is refused."""
    _, keys = sentencepiece_model(model_type="bpe", vocab_size=600, byte_fallback=True)
    plain = text.from_gguf(metadata("llama", **keys))
    size = len(keys["tokens"])

    def padded(*tokens: str) -> Tokenizer:
        more = {"tokens": [*tokens], "scores": [-10000.0] * len(tokens), "token_type": [5] * len(tokens)}
        return text.from_gguf(metadata("llama", **{**keys, **{key: keys[key] + more[key] for key in more}}))

    filled = padded(*(f"[PAD{id}]" for id in range(size, size + 7)))
    assert filled.vocabulary_size == size + 7
    assert filled.decode([size + 3]) == f"[PAD{size + 3}]"
    texts = [*hard_texts, f"a [PAD{size}] [PAD{size + 3}]b"]
    assert filled.encode_batch(texts) == plain.encode_batch(texts)
    twice = 2 * keys["tokens"][-1]
    with pytest.raises(TextError, match=f"the piece '{twice}' is marked as unused"):
        padded("[PAD600]", twice)


def test_sentencepiece_unigram_is_sentencepieces(hard_texts: list[str]) -> None:
    """Kind `t5`: the same best path, the same normalisation, the end token after it."""
    theirs, keys = sentencepiece_model(model_type="unigram", vocab_size=400, pad_id=0, unk_id=2, eos_id=1, bos_id=-1)
    ours = text.from_gguf(metadata("t5", **{key: value for key, value in keys.items() if key != "bos_token_id"}))
    plain = [each for each in hard_texts if ordinary_marks(each)]
    assert len(plain) > 100
    for each in [*plain, *CORPUS[:4], "  many   spaces  ", "", "ﬁne Ｆｕｌｌ"]:
        ids = theirs.encode(each)
        assert ours.encode(each) == [*ids, 1]
        assert piecewise(ours, ids) == ours.decode(ids)
    for each in CORPUS[:4]:
        assert ours.decode(ours.encode(each)) == theirs.decode(theirs.encode(each))


def test_word_piece_is_the_vocabularys_other_spelling(minilm: Path, hard_texts: list[str]) -> None:
    """Kind `bert`: MiniLM's own vocabulary, spelled as GGUF files spell it, gives MiniLM's own ids."""
    theirs = text.load(minilm)
    assert theirs is not None
    vocabulary = json.loads((minilm / "tokenizer.json").read_text())["model"]["vocab"]

    def spelled(token: str) -> str:
        if token.startswith("[") and token.endswith("]"):
            return token
        return token.removeprefix("##") if token.startswith("##") else "▁" + token

    tokens = [spelled(token) for token in sorted(vocabulary, key=lambda token: vocabulary[token])]
    control = {0, 100, 101, 102, 103}
    ours = text.from_gguf(
        metadata(
            "bert",
            tokens,
            token_type=[3 if id in control else 1 for id in range(len(tokens))],
            unknown_token_id=100,
            seperator_token_id=102,
            padding_token_id=0,
            cls_token_id=101,
            mask_token_id=103,
        )
    )
    for each in [*hard_texts, "a [MASK] b"]:
        ids = ours.encode(each)
        assert ids == theirs.encode(each)
        assert ours.decode(ids) == theirs.decode(ids) == piecewise(ours, ids)
    assert ours.special_tokens == theirs.special_tokens


def test_word_piece_knows_special_tokens_in_any_spelling() -> None:
    """Special tokens that do not stand in brackets lose only their ▁, and keep their ids."""
    tokens = ["▁<s>", "▁</s>", "▁<unk>", "▁cat", "s"]
    roles = {"bos_token_id": 0, "seperator_token_id": 1, "unknown_token_id": 2}
    ours = text.from_gguf(metadata("bert", tokens, token_type=[3, 3, 3, 1, 1], **roles))
    assert ours.encode("Cats dog") == [0, 3, 4, 2, 1]
    assert ours.decode([0, 3, 4, 1]) == "cats"
    assert (ours.bos, ours.vocabulary_size) == (0, 5)


def test_byte_level_bpe_is_the_trained_tokenizer(hard_texts: list[str]) -> None:
    """Kind `gpt2`: vocabulary, merges and the name of the split make the tokenizer again that they came from."""
    theirs = text.train_bpe(CORPUS, 500)
    model = json.loads(theirs._backend.to_str())["model"]
    tokens = sorted(model["vocab"], key=lambda token: model["vocab"][token])
    merges = [" ".join(pair) for pair in model["merges"]]
    keys = {"merges": merges, "token_type": [3, *[1] * (len(tokens) - 1)], "bos_token_id": 0, "eos_token_id": 0}
    ours = text.from_gguf(metadata("gpt2", tokens, pre="dbrx", **keys))
    for each in hard_texts:
        assert ours.encode(each) == theirs.encode(each)
        assert ours.decode(ours.encode(each)) == each
    around = text.from_gguf(metadata("gpt2", tokens, pre="llama-bpe", add_eos_token=True, **keys))
    assert around.encode("the") == [0, *theirs.encode("the"), 0]
    assert around.encode("the", special=False) == theirs.encode("the")


def test_character_bpe_falls_back_to_bytes() -> None:
    """Kind `gemma4`: spaces as ▁, merges over characters, bytes where a character is unknown."""
    tokens = [
        "<pad>",
        "<eos>",
        "<bos>",
        "<unk>",
        "▁",
        "a",
        "b",
        "ab",
        "▁ab",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    keys = {"merges": ["a b", "▁ ab"], "token_type": [3, 3, 3, 2, *[1] * 5, *[6] * 256], "add_bos_token": True}
    ours = text.from_gguf(metadata("gemma4", tokens, bos_token_id=2, eos_token_id=1, **keys))
    ids = [2, 7, 8, 4, *(9 + byte for byte in "é".encode())]
    assert ours.encode("ab ab é") == ids
    assert ours.decode(ids) == "ab ab é" == piecewise(ours, ids)


def test_the_real_vocabulary_is_the_published_tokenizer(smollm2: Path, hard_texts: list[str], tmp_path: Path) -> None:
    """SmolLM2's GGUF file gives what its tokenizer.json is made of: GPT-2's split after single digits, no more; and a
    save that loads in transformers and gives the same ids there."""
    keys = GgufFile(smollm2).metadata
    ours = text.from_gguf(keys)
    ids = {token: id for id, token in enumerate(keys["tokenizer.ggml.tokens"])}
    published = Backend(models.BPE(ids, [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]))
    digits, gpt2 = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    published.pre_tokenizer = pre_tokenizers.Sequence([digits, gpt2])
    published.add_special_tokens([AddedToken(token, normalized=False) for token in keys["tokenizer.ggml.tokens"][:17]])
    ours.save(tmp_path)
    saved = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for each in [*hard_texts, LICENSE, "<|im_start|>user\nHi<|im_end|>"]:
        expected = published.encode(each).ids
        assert ours.encode(each) == expected == saved.encode(each)
        assert ours.decode(expected, skip_special=False) == each == saved.decode(expected)
    assert (ours.bos, ours.eos, ours.pad, ours.vocabulary_size) == (1, 2, 2, 49152)
    assert saved.special_tokens_map == ours.special_tokens


@pytest.mark.slow
def test_the_real_vocabulary_agrees_with_transformers(smollm2: Path, hard_texts: list[str]) -> None:
    """What transformers makes of the same GGUF file; it does not split digits there, so texts without any."""
    ours = text.from_gguf(GgufFile(smollm2).metadata)
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    texts = [each for each in [*hard_texts, LICENSE] if not any(character.isnumeric() for character in each)]
    assert len(texts) > 10
    assert [theirs.encode(each) for each in texts] == ours.encode_batch(texts)
    assert theirs.special_tokens_map == ours.special_tokens


def test_special_tokens_keep_their_ids_and_user_defined_ones_are_text() -> None:
    """Control tokens are skipped in decoding, user-defined ones are not; neither is ever split."""
    tokens = ["a", "b", "<stop>", "<tool>", "c"]
    ours = text.from_gguf(
        metadata("gpt2", tokens, pre="gpt-2", merges=["a b"], token_type=[1, 1, 3, 4, 1], eos_token_id=2)
        | {"tokenizer.ggml.tokens": [*tokens, "ab"], "tokenizer.ggml.token_type": [1, 1, 3, 4, 1, 1]}
    )
    assert ours.encode("ab<tool>c<stop>") == [5, 3, 4, 2]
    assert ours.decode([5, 3, 4, 2]) == "ab<tool>c"


def test_ids_outside_the_vocabulary_name_no_token() -> None:
    """Files exist whose special ids lie outside their vocabulary; they load, without those tokens."""
    keys = {"pre": "gpt-2", "merges": ["a b"], "eos_token_id": 99, "bos_token_id": 0}
    ours = text.from_gguf(metadata("gpt2", ["a", "b", "ab"], **keys))
    assert (ours.bos, ours.eos) == (0, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "rwkv"}, "kind 'rwkv'; known kinds: gpt2, gemma4, llama, bert, t5"),
        ({"model": None}, "kind None"),
        ({"model": ["gpt2"]}, "kind"),
        ({"tokens": []}, "vocabulary is empty"),
        ({"tokens": "abc"}, r"tokenizer\.ggml\.tokens is not a list"),
        ({"tokens": [1, 2]}, r"tokenizer\.ggml\.tokens holds something else than values of type str"),
        ({"token_type": [1]}, r"tokenizer\.ggml\.token_type has 1 entries for 3 tokens"),
        ({"scores": [0.5, 0.5]}, r"tokenizer\.ggml\.scores has 2 entries for 3 tokens"),
        ({"pre": "brand-new"}, "pre-tokenizer 'brand-new' is unknown here; known ones: .*llama-bpe"),
        ({"merges": []}, r"no merges \(tokenizer\.ggml\.merges\)"),
        ({"merges": ["a q"]}, "vocabulary cannot be used: .*`q`"),
        ({"add_bos_token": "yes"}, r"tokenizer\.ggml\.add_bos_token is not a bool"),
        ({"eos_token_id": "2"}, r"tokenizer\.ggml\.eos_token_id is not a int"),
        ({"model": "t5"}, "unigram vocabulary has no unknown token"),
        ({"model": "t5", "unknown_token_id": 0, "precompiled_charsmap": [1, 2, 3]}, "vocabulary cannot be used: "),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    """Unknown kinds, missing and mismatched keys, values of another type: a sentence that names the key."""
    keys = {"pre": "gpt-2", "merges": ["a b"]}
    sound = metadata("gpt2", ["a", "b", "ab"], **keys)
    assert text.from_gguf(sound).encode("ab") == [2]
    with pytest.raises(TextError, match=message):
        text.from_gguf({**sound, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}})
