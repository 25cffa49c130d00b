"""What people read of a run: a text gone on with, an answer beside the wanted one, what was hidden, found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives import records_of, tiny, windows_of

from anyformer.model import Transformer
from anyformer.training.objectives import OBJECTIVES, Objective
from anyformer.training.watching.samples import GIVEN, HIDDEN, WRITTEN, sample_every, take

PAIRS = [{"source": "ein Haus", "target": "a house"}, {"source": "x", "target": "y"}]
TALK = [{"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "four"}]}]
TEXTS = [{"text": "a fine day", "label": "good"}, {"text": "bad", "label": "bad"}]
WORDS = [{"tokens": ["Ada", "knows", "Paris"], "labels": ["PER", "O", "LOC"]}]
LIKED = [{"prompt": "2+2?", "chosen": "4", "rejected": "five, I am quite sure"}]
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"


def asked(
    objective: str, preset: str, fields: list[dict[str, Any]] | None = None
) -> tuple[Transformer, Objective, Any]:
    """A small model, its objective, and examples of it."""
    model = tiny(preset, objective, labels=3)
    made = OBJECTIVES[objective](model)
    if fields is None:
        windows = windows_of([30, 90, 7, 60], 64, seed=1)
        return model, made, [windows[0], windows[1]]
    return model, made, records_of(made, model, *fields)


@pytest.mark.parametrize(
    ("objective", "preset", "fields"),
    [
        ("causal", "gpt2:tiny", None),
        ("prefix", "llama:tiny", None),
        ("prefix", "t5:tiny", None),
        ("spans", "t5:tiny", None),
        ("masked", "bert:tiny", None),
        ("seq2seq", "t5:tiny", PAIRS),
        ("seq2seq", "llama:tiny", PAIRS),
        ("preferences", "llama:tiny", LIKED),
        ("classify", "bert:tiny", TEXTS),
        ("classify_tokens", "bert:tiny", WORDS),
    ],
)
def test_every_objective_is_shown_the_same_each_time(
    objective: str, preset: str, fields: list[dict[str, Any]] | None
) -> None:
    """A sample for each example, the same from the same weights and seed; the random numbers of the run, and whether
    the model trains, stay as they were."""
    model, made, examples = asked(objective, preset, fields)
    before = torch.random.get_rng_state()
    found = take(model, made, examples, seed=3)
    assert torch.equal(before, torch.random.get_rng_state()) and model.training
    assert len(found) == len(examples) and all(each["prompt"] and each["wanted"] for each in found)
    assert all(mark in ("", "right", "wrong") for each in found for _, mark in each["answer"])
    assert found == take(model, made, examples, seed=3)


def test_a_text_is_gone_on_with_beside_how_it_goes_on() -> None:
    """The beginning of the longest document of a window is given, and what follows it is wanted."""
    model, made, (window, _) = asked("causal", "gpt2:tiny")
    [sample] = take(model, made, [window], seed=0)
    text = bytes(token for token in window.tokens.tolist() if token < 256).decode()
    document = text[30:]
    cut = len(document) // 2
    assert document.startswith(sample["prompt"] + sample["wanted"][:5]) and abs(len(sample["prompt"]) - cut) <= 2
    assert len(sample["prompt"]) <= GIVEN + 1 and len(sample["wanted"]) <= WRITTEN


def test_an_answer_stands_beside_the_wanted_one() -> None:
    """Of a pair, the source is given and the target wanted, for an encoder-decoder and for a decoder alone."""
    for preset, between in (("t5:tiny", ""), ("llama:tiny", "\n")):
        model, made, examples = asked("seq2seq", preset, PAIRS)
        first, second = take(model, made, examples, seed=0)
        assert (first["prompt"], first["wanted"]) == ("ein Haus" + between, "a house")
        assert (second["prompt"], second["wanted"]) == ("x" + between, "y")


def test_of_two_answers_the_chosen_one_is_wanted() -> None:
    """However much longer the other one is."""
    model, made, examples = asked("preferences", "llama:tiny", LIKED)
    [sample] = take(model, made, examples, seed=0)
    assert (sample["prompt"], sample["wanted"]) == ("2+2?", "4")


def test_hidden_tokens_are_marked_right_or_wrong() -> None:
    """What was hidden is a box in the prompt and a marked piece of the answer; a model that always answers `a` is right
    where there was one."""
    model, made, examples = asked("masked", "bert:tiny")
    assert model.head is not None
    with torch.no_grad():
        model.head.output.bias[97] = 1e4
    for sample in take(model, made, examples, seed=0):
        marked = [(piece, mark) for piece, mark in sample["answer"] if mark]
        assert len(marked) == sample["prompt"].count(HIDDEN) > 0
        places = [at for at, character in enumerate(sample["prompt"]) if character == HIDDEN]
        assert [mark for _, mark in marked] == ["right" if sample["wanted"][at] == "a" else "wrong" for at in places]
        assert all(piece == "a" for piece, _ in marked)
        assert len(sample["prompt"]) == len(sample["wanted"]) == sum(len(piece) for piece, _ in sample["answer"])


def test_labels_are_named_and_marked() -> None:
    """Of a text and of words."""
    model, made, examples = asked("classify_tokens", "bert:tiny", WORDS)
    assert model.head is not None
    with torch.no_grad():
        model.head.output.bias[1] = 1e4
    [sample] = take(model, made, examples, seed=0)
    assert (sample["prompt"], sample["wanted"]) == ("Ada knows Paris", "A/2da k/1nows P/0aris")
    assert [(piece, mark) for piece, mark in sample["answer"] if mark] == [
        ("/1", "wrong"),
        ("/1", "right"),
        ("/1", "wrong"),
    ]


def test_a_conversation_is_answered() -> None:
    """Everything before the assistant's words is given, and those are wanted."""
    from anyformer import text

    backend = text.byte_level()
    tokenizer = text.Tokenizer(backend._backend, {**backend._config, "chat_template": TEMPLATE})
    model = tiny("llama:tiny", "chat", tokenizer=tokenizer)
    made = OBJECTIVES["chat"](model)
    [sample] = take(model, made, records_of(made, model, *TALK), seed=0)
    assert sample["prompt"].startswith("<user>2+2?") and sample["wanted"].strip() in "<assistant>four"


def test_a_sample_costs_a_small_share_of_a_run() -> None:
    """With some of the validations, ten at most, no more than a share of the tokens; never fewer than at the end."""
    assert sample_every(2000, 100, 2000 * 4096, 3) == 200
    assert sample_every(2000, 100, 2000 * 512, 3) == 300
    assert sample_every(2000, 100, 2000 * 100, 3) == 2000
    assert sample_every(8, 4, 8 * 256, 3) == 8
    for steps, every, tokens in ((7, 3, 10**9), (1000, 1, 10**6), (3, 5, 100)):
        step = sample_every(steps, every, tokens, 3)
        assert step % every == 0 and len(range(step, steps + 1, step)) <= 10
