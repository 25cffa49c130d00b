"""Constrained answers: whatever the weights, the tokenizer and the way of choosing, they are what was asked for."""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from vocabularies import lines, sentencepiece_model

from anyformer import spec, text
from anyformer.errors import InputError
from anyformer.generation import Prompts, Settings, left_padded, steps, until_end
from anyformer.generation.constraints import Constraint, constraint_of
from anyformer.model import Transformer, build
from anyformer.text import Tokenizer

pytest.importorskip("llguidance", reason="constraints need the package llguidance")

KINDS = ("bytes", "byte-level BPE", "SentencePiece BPE", "unigram", "unigram with bytes", "WordPiece")


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A vocabulary of each kind, out of the files that it comes in, trained on code and a little else."""
    directory: Path = tmp_path_factory.mktemp("kind")
    match request.param:
        case "bytes":
            return text.byte_level()
        case "byte-level BPE":
            return text.train_bpe(lines(), 600)
        case "SentencePiece BPE":
            options = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
            (directory / "tokenizer.model").write_bytes(sentencepiece_model(**options))
        case "unigram":
            options = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
            (directory / "spiece.model").write_bytes(sentencepiece_model(**options))
        case "unigram with bytes":
            options = {"model_type": "unigram", "byte_fallback": True, "vocab_size": 1000}
            (directory / "sentencepiece.bpe.model").write_bytes(sentencepiece_model(**options))
        case "WordPiece":
            letters = [*"abcdefghijklmnopqrstuvwxyz", *'{}[]():,."0123456789-']
            tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{each}" for each in letters), "yes"]
            (directory / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return text.read(directory)


def end_of(tokenizer: Tokenizer) -> int:
    end = tokenizer.eos if tokenizer.eos is not None else tokenizer.id_of("[SEP]")
    assert end is not None
    return end


def model_of(vocabulary: int, seed: int = 0) -> Transformer:
    """A small decoder that likes some tokens far better than others."""
    attention = spec.Attention(heads=2, kv_heads=1, head_dim=4, visibility="causal", position=spec.Rotary())
    block = spec.Block(branches=(spec.Branch(mixer=attention, norm=spec.Norm(kind="rms")),))
    stack = spec.Stack(dim=8, depth=1, pattern=(block,), embeddings=spec.Embeddings(vocabulary=vocabulary))
    how = spec.Initialization(std=0.4)
    return build(spec.Transformer(decoder=stack, head=spec.LanguageModelHead(), initialization=how), seed=seed).eval()


def answers(tokenizer: Tokenizer, rows: int, **chosen: Any) -> list[str]:
    """What random models say under a constraint, which all of them bring to an end."""
    end = end_of(tokenizer)
    settings = Settings(max_new_tokens=600, eos=end, **{"temperature": 1.0, "seed": 0, **chosen})
    prompt, valid = left_padded([[1] * (1 + row % 3) for row in range(rows)], 0, "cpu")
    # More ids than the tokenizer knows, as models have them.
    model = model_of(tokenizer.vocabulary_size + 7)
    constraint = constraint_of(settings, tokenizer, rows)
    assert constraint is not None
    found = torch.stack(list(steps(model, Prompts(prompt, valid), settings, constraint=constraint)), 1).tolist()
    assert all(end in row for row in found)
    return [tokenizer.decode(until_end(row, [end])) for row in found]


#: Languages with few texts, all of them: what a regular expression matches, by hand.
FINITE = {
    r"(ab|a)(bc)?": {"ab", "a", "abbc", "abc"},
    r"[0-2],? ?[ab]": {
        f"{one}{comma}{gap}{two}" for one in "012" for comma in ("", ",") for gap in ("", " ") for two in "ab"
    },
    r" ?yes( no)?|": {"", "yes", " yes", "yes no", " yes no"},
    r"né?|日(本)?": {"n", "né", "日", "日本"},
}


@pytest.mark.parametrize("pattern", FINITE)
def test_exactly_the_tokens_that_lead_to_a_text_are_possible(tokenizer: Tokenizer, pattern: str) -> None:
    """On random walks through finite languages: a token is possible if and only if what decoding then gives begins one
    of the texts, and the end if and only if what was said is one. Only inside a character decoding says too little."""
    end, draw = end_of(tokenizer), random.Random(pattern)
    for _ in range(4):
        constraint = constraint_of(Settings(regex=pattern, eos=end), tokenizer, 1)
        assert constraint is not None
        ids: list[int] = []
        while True:
            written = tokenizer.decode(ids)
            try:
                possible = constraint.allowed(torch.zeros(1, tokenizer.vocabulary_size)).isfinite()[0]
            except InputError:
                # What comes next cannot be written with these tokens.
                possible = torch.zeros(tokenizer.vocabulary_size, dtype=torch.bool)
            for id in range(tokenizer.vocabulary_size):
                after = tokenizer.decode([*ids, id])
                if id == end:
                    assert bool(possible[id]) is (written in FINITE[pattern]), written
                elif "\ufffd" not in after:
                    longer = len(after) > len(written.rstrip("\ufffd"))
                    leads = longer and any(whole.startswith(after) for whole in FINITE[pattern])
                    assert bool(possible[id]) is leads, (written, after)
            choices = possible.nonzero()[:, 0].tolist()
            if not choices:
                break
            ids.append(draw.choice(choices))
            constraint.advance(torch.tensor(ids[-1:]))
            if ids[-1] == end:
                assert tokenizer.decode(ids[:-1]) in FINITE[pattern]
                break


SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -20, "maximum": 300},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "kind": {"enum": ["a", "ab", None, 3]},
            "at": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2},
        },
        "required": ["kind", "name"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#/$defs/leaf"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
        "$defs": {"leaf": {"type": "string", "pattern": "^[a-f]{2}-[0-9]{1,3}$"}},
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=["integer", "array", "object", "reference"])
def test_json_is_valid_whatever_the_weights(tokenizer: Tokenizer, schema: dict[str, Any]) -> None:
    """Draws at temperature 1 from random models, and the likeliest tokens: every answer is JSON that its schema
    validates, given as an object or as text."""
    found = answers(tokenizer, 6, json_schema=schema)
    found += answers(tokenizer, 2, json_schema=json.dumps(schema), temperature=0.0, seed=None)
    for answer in found:
        jsonschema.validate(json.loads(answer), schema)
    assert len(set(found[:6])) > 1, "draws differ"


@pytest.mark.parametrize(
    "pattern",
    [r"[a-c]{3,9}", r"[0-9]{1,3}(\.[0-9]{2})? (abs|no{1,5})?\.", r"(the|a)( [dehs]{1,4}){0,3}", r"[^a-z]{2,5}"],
)
def test_a_regular_expression_matches_the_whole_answer(tokenizer: Tokenizer, pattern: str) -> None:
    """As Python's own library says, from the first character to the last."""
    for answer in answers(tokenizer, 6, regex=pattern):
        assert re.fullmatch(pattern, answer, re.DOTALL), answer


def test_an_answer_is_of_the_language_of_a_grammar(tokenizer: Tokenizer) -> None:
    """Nested brackets, which no regular expression counts."""
    grammar = 'start: item ("," item){0,2}\nitem: /[a-d]{1,2}/ | "(" start ")" | "[" start "]"\n'
    for answer in answers(tokenizer, 6, grammar=grammar, seed=5):
        flat = answer
        while (
            shorter := re.sub(r"\((I(,I){0,2})\)|\[(I(,I){0,2})\]|(?<![a-zI])[a-d]{1,2}(?![a-z])", "I", flat)
        ) != flat:
            flat = shorter
        assert re.fullmatch(r"I(,I){0,2}", flat), answer


def test_rows_have_constraints_of_their_own() -> None:
    """One for each prompt, several answers to each; what ends early is filled up and harms no other row."""
    tokenizer = text.byte_level()
    patterns = ("a{1,2}", "b{30}", "[0-9]{3}")
    settings = Settings(regex=patterns, eos=256, pad=99, temperature=1.0, answers=2, seed=1)
    constraint = constraint_of(settings, tokenizer, 6)
    ids = torch.stack(
        list(steps(model_of(300), Prompts(torch.ones(6, 2, dtype=torch.long)), settings, constraint=constraint)), 1
    )
    found = [tokenizer.decode(until_end(row, [256])) for row in ids.tolist()]
    assert all(re.fullmatch(patterns[row // 2], answer) for row, answer in enumerate(found))
    assert all(set(row[len(answer) + 1 :]) <= {99} for row, answer in zip(ids.tolist(), found))
    with pytest.raises(InputError, match="there are 3 constraints for 2 prompts; give one for each, or one for all"):
        constraint_of(settings, tokenizer, 4)


@pytest.mark.parametrize(
    "search",
    [
        {"beams": 4},
        {"beams": 4, "beam_groups": 2, "diversity_penalty": 0.5, "pad": 99},
        {"beams": 3, "answers": 3},
        {"penalty_alpha": 0.5, "top_k": 4},
    ],
    ids=["beams", "groups", "answers", "contrastive"],
)
def test_searches_keep_to_a_constraint(search: dict[str, Any]) -> None:
    """Also where fewer texts are possible than there are beams, which then find fewer answers."""
    model = model_of(300)
    model.tokenizer = text.byte_level()
    for pattern in ("abc|abd|xy{3}", "a", "[0-9]{3}"):
        found = model.generate(["q", "rs"], max_new_tokens=9, eos=256, regex=pattern, **search)
        whole = [answer for answer in found if answer]
        assert all(re.fullmatch(pattern, answer) for answer in whole)
        each = 1 if pattern == "a" else search.get("answers", 1)
        assert len(whole) == 2 * each and len(set(whole[:each])) == each


def test_rows_follow_each_other_where_they_are_reordered() -> None:
    """A row that takes another's place has said what that one said, and goes its own way from there."""
    tokenizer = text.byte_level()
    constraint = constraint_of(Settings(regex="ab|cd|ce", eos=256), tokenizer, 2)
    assert constraint is not None
    constraint.advance(torch.tensor([ord("a"), ord("c")]))
    constraint.reorder([1, 1])

    def possible(constraint: Constraint) -> list[str]:
        allowed = constraint.allowed(torch.zeros(len(constraint.lines), 300)).isfinite()
        return [bytes(row.nonzero()[:, 0].tolist()).decode() for row in allowed[:, :256]]

    assert possible(constraint) == ["de", "de"]
    constraint.advance(torch.tensor([ord("d"), ord("e")]))
    assert possible(constraint) == ["", ""]


WRONG = [
    (
        {"regex": "a("},
        'the regular expression cannot be used: invalid regex "a\\("'.replace("\\(", "("),
        "unclosed group",
    ),
    ({"regex": "(?=a)b"}, "the regular expression cannot be used", "look-around"),
    ({"grammar": "start: foo"}, "the grammar cannot be used: line 1, column 8", 'unknown name: "foo"'),
    ({"grammar": "what"}, "the grammar cannot be used: line 1", "Expected token ':'"),
    ({"json_schema": "{"}, "the JSON schema is no JSON", "line 1 column 2"),
    ({"json_schema": "[1]"}, "a JSON schema is an object, not [1]", ""),
    ({"json_schema": {"const": {1}}}, "the JSON schema cannot be written as JSON", "set"),
    ({"json_schema": {"type": "objekt"}}, "the JSON schema cannot be used: Invalid type: objekt", ""),
    ({"json_schema": {"not": {}}}, 'the JSON schema cannot be used: Unimplemented keys: ["not"]', ""),
    ({"json_schema": {"type": "string", "pattern": "a("}}, "the JSON schema cannot be used", "unclosed group"),
    ({"json_schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "the JSON schema cannot be used: Unsat", "(1)"),
]


@pytest.mark.parametrize(("given", "begins", "holds"), WRONG, ids=lambda each: str(each)[:30])
def test_what_is_malformed_is_said_in_one_sentence(given: dict[str, Any], begins: str, holds: str) -> None:
    """A schema, a regular expression or a grammar that cannot be read: which it is, and what is wrong with it."""
    with pytest.raises(InputError) as caught:
        constraint_of(Settings(eos=256, **given), text.byte_level(), 1)
    said = str(caught.value)
    assert said.startswith(begins) and holds in said and "\n" not in said and len(said) < 250


def test_what_cannot_be_followed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tokenizer, no end token, a decoder for whole texts only, a vocabulary that cannot write what is asked for, a
    token that another setting forces, two constraints at once, a missing package."""
    asked = Settings(regex="ab", eos=256)
    with pytest.raises(InputError, match="a constraint holds for texts, and this model has no tokenizer; set model"):
        constraint_of(asked, None, 1)
    with pytest.raises(InputError, match="a constrained answer ends with an end token, and none is known; give eos="):
        constraint_of(Settings(regex="ab"), text.byte_level(), 1)
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "a"]), encoding="utf-8"
    )
    few = text.read(tmp_path)
    constraint = constraint_of(Settings(regex="ab", eos=2), few, 1)
    assert constraint is not None
    constraint.advance(torch.tensor([5]))
    with pytest.raises(
        InputError, match="after 'a' no token of this vocabulary goes on as the constraint asks; loosen"
    ):
        constraint.allowed(torch.zeros(1, 6))
    settings = Settings(regex="ab", eos=256, bad_words=((97,),), max_new_tokens=3)
    constraint = constraint_of(settings, text.byte_level(), 1)
    with pytest.raises(InputError, match="0 tokens cannot go on: bad_words and the constraint leave it no token; take"):
        list(steps(model_of(300), Prompts(torch.ones(1, 2, dtype=torch.long)), settings, constraint=constraint))
    for forced, what in ((98, r"token 98, b'b'"), (299, "token 299")):
        settings = Settings(regex="ab", eos=256, forced_bos=forced)
        constraint = constraint_of(settings, text.byte_level(), 1)
        with pytest.raises(InputError, match=f"after the prompt the constraint does not allow {what}; take back force"):
            list(steps(model_of(300), Prompts(torch.ones(1, 1, dtype=torch.long)), settings, constraint=constraint))
    with pytest.raises(
        InputError, match="an answer follows one constraint: give one of json_schema, regex and grammar"
    ):
        Settings.of({}, regex="a", grammar="start: /a/")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(
        InputError, match=r"constraints need the package llguidance: pip install 'anyformer\[constrain\]'"
    ):
        constraint_of(asked, text.byte_level(), 1)
    assert constraint_of(Settings(), None, 1) is None
