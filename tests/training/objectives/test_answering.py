"""Pairs and conversations: what is given is read, and only the answer is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objectives import assert_packed_is_separate, records_of, tiny

import anyformer as af
from anyformer import families, text
from anyformer.data import NO_TARGET
from anyformer.errors import DataError, TrainingError
from anyformer.model import Transformer, build
from anyformer.training import train
from anyformer.training.objectives import Chat, SequenceToSequence
from anyformer.training.state import read_metrics

T5, LLAMA, TALKER = tiny("t5:tiny", "seq2seq"), tiny("llama:tiny", "seq2seq"), tiny("llama:tiny", "chat")
PAIRS = [
    {"source": "a rook", "target": "ein Turm"},
    {"source": "x", "target": "y"},
    {"source": "king" * 4, "target": "K"},
]
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": "Hello there."},
    {"role": "user", "content": "Bye."},
    {"role": "assistant", "content": "So long!"},
]


@pytest.mark.parametrize("model", [T5, LLAMA])
def test_pairs_packed_are_pairs_alone(model: Transformer) -> None:
    """A packed batch has the loss and the gradients of its pairs one by one."""
    objective = SequenceToSequence(model)
    batch = objective.batch(records_of(objective, model, *PAIRS), np.random.default_rng(0))
    assert_packed_is_separate(model, batch)


def test_an_encoder_reads_the_source_and_a_decoder_both() -> None:
    """The target and its end are asked for, each from what stands before it."""
    for model in (T5, LLAMA):
        objective = SequenceToSequence(model)
        [record] = records_of(objective, model, PAIRS[0])
        inputs = objective.batch([record], np.random.default_rng(0)).inputs
        targets = inputs["targets"][0][inputs["targets"][0] != NO_TARGET].tolist()
        assert bytes(targets[:-1]).decode() == "ein Turm" and targets[-1] == 256
        read = inputs["tokens"][0].tolist()
        if model is T5:
            assert bytes(inputs["source"][0].tolist()).decode() == "a rook" and read == [256, *targets[:-1]]
        else:
            assert bytes(read[1:]).decode() == "a rook\nein Turm" and read[0] == 256


def test_pairs_that_are_too_long_or_empty_are_left_out() -> None:
    """A side of the sequence length still fits, the end counted; one token more does not."""
    objective = SequenceToSequence(T5)
    sides = [("a" * 8, "b"), ("a" * 9, "b"), ("a", "b" * 7), ("a", "b" * 8), ("", "b")]
    records = records_of(objective, T5, *({"source": a, "target": b} for a, b in sides), length=8)
    assert [(len(record["source"]), len(record["target"])) for record in records] == [(8, 2), (1, 8)]


def test_only_the_assistant_is_asked_for() -> None:
    """Its words and the ends of its turns; not the line breaks after them, nor anybody else's."""
    objective = Chat(TALKER)
    [record] = records_of(objective, TALKER, {"messages": TALK}, length=500)
    tokenizer = TALKER.tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(record["tokens"].tolist(), skip_special=False) == tokenizer.chat(
        TALK, add_generation_prompt=False
    )
    said = tokenizer.decode(record["tokens"][record["asked"] == 1].tolist(), skip_special=False)
    assert said == "Hello there.<|im_end|>So long!<|im_end|>"
    inputs = objective.batch([record], np.random.default_rng(0)).inputs
    asked = inputs["targets"][0] != NO_TARGET
    assert inputs["targets"][0][asked].tolist() == record["tokens"][record["asked"] == 1].tolist()


@given(st.lists(st.tuples(st.text("ab <|é\n", max_size=9), st.text("ab <|é\n", max_size=9)), min_size=1, max_size=4))
def test_whatever_is_said_is_told_apart(turns: list[tuple[str, str]]) -> None:
    """However messages look, every answer is asked for whole, and nothing else is."""
    messages = [{"role": role, "content": said} for turn in turns for role, said in zip(("user", "assistant"), turn)]
    [record] = records_of(Chat(TALKER), TALKER, {"messages": messages}, length=5000)
    assert TALKER.tokenizer is not None
    said = TALKER.tokenizer.decode(record["tokens"][record["asked"] == 1].tolist(), skip_special=False)
    assert said == "".join(answer + "<|im_end|>" for _, answer in turns)


def test_conversations_packed_are_conversations_alone() -> None:
    """A packed batch has the loss and the gradients of its conversations one by one."""
    objective = Chat(TALKER)
    records = records_of(
        objective, TALKER, {"messages": TALK}, {"messages": TALK[1:3]}, {"messages": TALK[:3]}, length=90
    )
    assert_packed_is_separate(TALKER, objective.batch(records, np.random.default_rng(0)))


def test_a_template_that_rewrites_earlier_messages_is_refused() -> None:
    """What was said could not be told apart; the sentence says what to do."""
    assert TALKER.tokenizer is not None
    forgetful = (
        "{% for m in messages %}{% if m.role != 'assistant' or loop.last %}{{ m.content }};{% endif %}{% endfor %}"
    )
    model = tiny("llama:tiny", "chat", tokenizer=TALKER.tokenizer.with_chat_template(forgetful))
    with pytest.raises(DataError, match="writes earlier messages anew"):
        records_of(Chat(model), model, {"messages": TALK})


def test_what_a_template_refuses_is_named() -> None:
    """The record, and the template's own words."""
    assert TALKER.tokenizer is not None
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    model = tiny("llama:tiny", "chat", tokenizer=TALKER.tokenizer.with_chat_template(strict))
    with pytest.raises(DataError, match=r"0: the chat template refuses these messages: no system here"):
        records_of(Chat(model), model, {"messages": TALK})


@pytest.mark.parametrize("messages", ["hello", [{"content": "x"}], ["x"], [{"role": 3, "content": "x"}]])
def test_what_is_no_conversation_is_refused(messages: Any) -> None:
    """In one sentence that names the record."""
    with pytest.raises(DataError, match=r"0: messages must be a list"):
        records_of(Chat(TALKER), TALKER, {"messages": messages})


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": 3}, {"content": [{"text": "x"}]}])
def test_what_a_template_would_write_as_something_else_is_refused(content: dict[str, Any]) -> None:
    """Nothing for what is missing, `None` for null: the model would learn to say it. Calls of tools have no text."""
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", **content}]
    with pytest.raises(DataError, match="0: message 2 of messages has no text as its 'content'"):
        records_of(Chat(TALKER), TALKER, {"messages": messages})
    called = {**messages[1], "tool_calls": [{"name": "f"}]}
    assert records_of(Chat(TALKER), TALKER, {"messages": [messages[0], called]})


def test_a_conversation_without_the_assistant_is_named_with_who_speaks() -> None:
    """Names as other tools have them are not guessed at, and no such conversation is left out in silence."""
    messages = [{"role": "human", "content": "x"}, {"role": "gpt", "content": "y"}]
    with pytest.raises(DataError, match=r"0: no message has the role 'assistant' .there are 'human', 'gpt'"):
        records_of(Chat(TALKER), TALKER, {"messages": messages})


@pytest.mark.parametrize("preset", ["t5:tiny", "original:tiny", "llama:tiny"])
def test_a_run_on_pairs_learns_to_answer(recipe: Any, tmp_path: Path, preset: str) -> None:
    """Words to their initials: after some steps they are answered right, by generation as a user calls it."""
    words = np.random.default_rng(0).choice(["rook", "king", "pawn", "bishop"], 800).tolist()
    (tmp_path / "pairs.tsv").write_text("".join(f"{word}\t{word[0].upper()}\n" for word in words))
    chosen = recipe(objective="seq2seq", steps=80, batch_tokens=512, learning_rate=5e-3, optimizer="muon")
    chosen = {**chosen, "model": {"preset": preset}, "data": {"train": str(tmp_path / "pairs.tsv"), "held_out": 50}}
    result = train(chosen, progress=False)
    rows = read_metrics(result.directory / "metrics.jsonl")
    assert result.validation_loss is not None and result.validation_loss < 0.25 * rows[0]["loss"]
    model = af.load(result.directory, device="cpu")
    asked = words[-50:]
    prompts = asked if model.encoder is not None else [word + "\n" for word in asked]
    right = [answer == word[0].upper() for answer, word in zip(model.generate(prompts, max_new_tokens=4), asked)]
    assert sum(right) > 40


def test_a_run_on_conversations_ends_its_turns(recipe: Any, tmp_path: Path) -> None:
    """The checkpoint carries the template, and generation stops where the assistant's turn ends."""
    talks = [[{"role": "user", "content": c}, {"role": "assistant", "content": c.upper()}] for c in "abcd" * 40]
    lines = "".join(json.dumps({"messages": talk}) + "\n" for talk in talks)
    (tmp_path / "talks.jsonl").write_text(lines)
    chosen = recipe(objective="chat", steps=80, batch_tokens=512, sequence_length=64, optimizer="muon")
    chosen = {
        **chosen,
        "model": {"preset": "llama:tiny"},
        "data": {"train": str(tmp_path / "talks.jsonl"), "held_out": 10},
    }
    model = af.load(train(chosen, progress=False).directory, device="cpu")
    assert model.tokenizer is not None
    prompts = [model.tokenizer.chat(talk[:1]) for talk in talks[:4]]
    assert model.generate(prompts, max_new_tokens=8) == [*"ABCD"]


def test_a_checkpoint_without_a_template_or_its_tokens_is_refused(recipe: Any, tmp_path: Path) -> None:
    """Its vocabulary has no room for the ends of turns."""
    model = build(families.llama("tiny", vocab_size=257), seed=0)
    model.tokenizer = text.byte_level()
    model.save(tmp_path / "model")
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": TALK}) + "\n")
    chosen = {**recipe(objective="chat"), "model": {"from": str(tmp_path / "model")}}
    with pytest.raises(TrainingError, match=r"needs the special token '<\|im_end\|>'"):
        train({**chosen, "data": {"train": str(tmp_path / "talks.jsonl")}}, progress=False)
