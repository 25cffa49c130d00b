"""Prompts that this machine's memory has no room for are refused before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyformer import families, machine, planning, spec
from anyformer.errors import InputError
from anyformer.generation import Prompts, Settings, search, steps
from anyformer.model import Transformer, build


def built(family: str, **changed: object) -> Transformer:
    return build(getattr(families, family)("tiny", **changed), seed=0).eval()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with room for the keys and values of a hundred tokens of LLaMA's smallest preset."""
    monkeypatch.setattr(
        machine, "available", lambda device: planning.kv_bytes(built("llama").spec, 100, dtype="float32")
    )


def test_a_prompt_beyond_memory_is_refused(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the figures, what would fit, and no pass of the model; greedy and in a search alike."""
    model = built("llama")
    monkeypatch.setattr(model, "next_logits", pytest.fail)
    prompt = torch.ones(1, 101, dtype=torch.long)
    said = r"of a prompt of 101 tokens take .* GB in float32.*at most 100 tokens, load the model in bfloat16"
    with pytest.raises(InputError, match=said):
        next(iter(steps(model, Prompts(prompt), Settings(max_new_tokens=1))))
    with pytest.raises(InputError, match="give at most"):
        search(model, Prompts(prompt), Settings(max_new_tokens=1, beams=2))
    with pytest.raises(InputError, match=r"2 prompts of 60 tokens.*or fewer prompts at a time"):
        model.generate(torch.ones(2, 60, dtype=torch.long), max_new_tokens=1)


def test_what_fits_is_read(small: None) -> None:
    """A hundred tokens; and of a conversation what is new, beside what is held already."""
    model = built("llama")
    prompt = torch.ones(1, 100, dtype=torch.long)
    cache = model.new_cache(1)
    assert len(list(steps(model, Prompts(prompt), Settings(max_new_tokens=1), cache=cache))) == 1
    assert len(list(steps(model, Prompts(prompt[:, :80]), Settings(max_new_tokens=1), cache=cache))) == 1


def test_in_8_bits_more_fits(small: None) -> None:
    """The refusal proposes it, and then the same prompt is read, beyond which nothing fits any more."""
    model = built("llama")
    with pytest.raises(InputError, match=r'in 8 bits \(quantize_cache="int8"\)'):
        model.generate(torch.ones(1, 300, dtype=torch.long), max_new_tokens=1)
    model.generate(torch.ones(1, 300, dtype=torch.long), max_new_tokens=1, quantize_cache="int8")
    with pytest.raises(InputError, match=r"take 0\.0 GB in int8.*tokens, use a model"):
        model.generate(torch.ones(1, 500, dtype=torch.long), max_new_tokens=1, quantize_cache="int8")


@pytest.mark.parametrize("new", [1, 30, 90])
def test_what_was_accepted_takes_no_more_than_was_said(small: None, monkeypatch: pytest.MonkeyPatch, new: int) -> None:
    """However a prompt is cut into pieces: room is made once, for it and, as far as they fit, the tokens that follow;
    never for twice as many."""
    model = built("llama")
    new_cache, made = model.new_cache, []
    monkeypatch.setattr("anyformer.planning.pieces.MOST", 16)
    monkeypatch.setattr(model, "new_cache", lambda *given, **how: made.append(new_cache(*given, **how)) or made[-1])
    model.generate(torch.ones(1, 70, dtype=torch.long), max_new_tokens=new)
    (cache,) = made
    slots = {layer.stored[0].shape[2] - 1 for layer in cache.layers}
    assert slots == {70 + new - 1}


def test_copies_of_a_prompt_are_counted(small: None) -> None:
    """Beams and answers each keep what the prompt came to."""
    model, prompt = built("llama"), torch.ones(1, 60, dtype=torch.long)
    model.generate(prompt, max_new_tokens=1)
    with pytest.raises(InputError, match="2 continuations of a prompt of 60 tokens"):
        model.generate(prompt, max_new_tokens=1, beams=2)
    with pytest.raises(InputError, match="3 continuations of a prompt of 60 tokens"):
        model.generate(prompt, max_new_tokens=1, temperature=1.0, answers=3)


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_what_is_read_at_once_must_fit(small: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A text to embed, and an encoder's source: refused with the figures, before anything is computed."""
    model = built(name)
    for stack in (model.encoder, model.decoder):
        if stack is not None:
            monkeypatch.setattr(stack, "forward", pytest.fail)
    texts = torch.ones(2, 100, dtype=torch.long)
    said = r"2 texts of 100 tokens, read at once, would take .* GB.*; give shorter ones, or fewer at a time"
    with pytest.raises(InputError, match=said):
        model.embed_ids(texts)
    if model.spec.shape == "encoder-decoder":
        with pytest.raises(InputError, match=said):
            model.generate(texts, max_new_tokens=1, start=0)


def test_a_prompt_whose_tokens_see_all_of_it_must_fit_at_once(small: None) -> None:
    """A prefix is not read in pieces."""
    described = built("llama").spec.model_dump()
    described["decoder"]["pattern"][0]["branches"][0]["mixer"]["visibility"] = "prefix"
    model = build(spec.Transformer.from_data(described), seed=0).eval()
    with pytest.raises(InputError, match="a text of 90 tokens, read at once"):
        model.generate(torch.ones(1, 90, dtype=torch.long), max_new_tokens=1)


def test_a_window_always_fits(small: None) -> None:
    """Its ring does not grow with the prompt."""
    model = built("mistral", sliding_window=8)
    assert len(list(steps(model, Prompts(torch.ones(1, 3000, dtype=torch.long)), Settings(max_new_tokens=1)))) == 1


def test_nothing_is_refused_where_memory_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that says nothing is believed to have room."""
    monkeypatch.setattr(machine, "available", lambda device: None)
    prompt = torch.ones(1, 50, dtype=torch.long)
    assert len(list(steps(built("llama"), Prompts(prompt), Settings(max_new_tokens=1)))) == 1


@pytest.mark.parametrize(
    ("way", "advice"),
    [
        ({"beams": 900_000}, "900,000 continuations of 2 prompts takes .* set lower beams"),
        ({"answers": 900_000, "temperature": 1.0}, "900,000 continuations of 2 prompts takes .* set lower answers"),
        ({"penalty_alpha": 0.5, "top_k": 900_000}, "256 continuations of 2 prompts takes .* set lower top_k"),
        ({}, "each step of 2 prompts takes .* give fewer prompts at a time"),
    ],
)
def test_what_runs_side_by_side_must_fit_for_a_step(
    monkeypatch: pytest.MonkeyPatch, way: dict[str, Any], advice: str
) -> None:
    """Known before anything is computed or made for each, with how many would fit, and so many do."""
    model = built("llama", vocab_size=256)
    monkeypatch.setattr(model, "next_logits", pytest.fail)
    monkeypatch.setattr(machine, "available", lambda device: 15_000)
    with pytest.raises(InputError, match=rf"{advice}: \d+ side by side fit$") as error:
        model.answers(torch.ones(2, 3, dtype=torch.long), max_new_tokens=2, **way)
    assert "GB, with logits of 256 tokens each" in str(error.value)


def test_as_many_as_are_said_to_fit_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for so many is not told of fewer."""
    model, prompt = built("llama", vocab_size=256), torch.ones(1, 3, dtype=torch.long)
    monkeypatch.setattr(machine, "available", lambda device: 1_000_000)
    with pytest.raises(InputError, match="side by side fit") as error:
        model.generate(prompt, beams=10_000, max_new_tokens=2)
    assert model.answers(prompt, beams=int(str(error.value).split()[-5]), max_new_tokens=2)[0].ids
