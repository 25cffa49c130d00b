"""Preferences: the formula, what it is computed of, and runs that learn them."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from objectives import records_of, tiny
from torch import Tensor

from anyformer.errors import DataError, TrainingError
from anyformer.model import Transformer
from anyformer.training import read_metrics, read_recipe, train
from anyformer.training.lora import Lora, adapt
from anyformer.training.objectives import Preferences
from anyformer.training.optimizers import learning

transformers = pytest.importorskip("transformers")

LLAMA, T5, TALKER = tiny("llama:tiny", "preferences"), tiny("t5:tiny", "preferences"), tiny("llama:tiny", "chat")
BETTER = {"prompt": "a rook ", "chosen": "moves straight", "rejected": "flies"}
SECOND = {"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5, or more"}
ASKED = [{"role": "user", "content": "Hi?"}]
SAID, UNSAID = ([{"role": "assistant", "content": answer}] for answer in ("Hello there.", "No."))


def settings(**training: Any) -> Any:
    recipe = {"run": {"directory": "r"}, "model": {"preset": "llama:tiny"}, "data": {"train": "t"}}
    return read_recipe({**recipe, "training": {"steps": 1, **training}}).training


def changed(model: Transformer) -> Transformer:
    """The same model after some learning."""
    after = copy.deepcopy(model).eval()
    with torch.no_grad():
        for parameter in learning(after).values():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return after


def likelihood(model: Any, prompt: list[int], answer: list[int]) -> Tensor:
    """log P(answer | prompt) by a transformers model, a token after the other."""
    logits = model(torch.tensor([prompt + answer])).logits[0].double().log_softmax(-1)
    return sum(logits[len(prompt) - 1 + index, token] for index, token in enumerate(answer))  # type: ignore[return-value]


@torch.no_grad()
def test_the_loss_is_the_formula_of_the_paper(tmp_path: Path) -> None:
    """-log σ(β log(π(c)/π₀(c)) - β log(π(r)/π₀(r))), summed over records, from the probabilities that transformers
    gives each answer on its own; and what is measured beside it."""
    after, beta = changed(LLAMA), 0.3
    theirs = []
    for index, model in enumerate((after, LLAMA)):
        model.family = "llama"
        model.save(tmp_path / str(index))
        theirs.append(transformers.LlamaForCausalLM.from_pretrained(tmp_path / str(index)).eval())
    objective = Preferences(after)
    objective.begin(settings(beta=beta), lambda: copy.deepcopy(LLAMA))
    records = records_of(objective, after, BETTER, SECOND)
    batch = objective.batch(records, np.random.default_rng(0))
    assert batch.target_count == 2
    rewards = []
    for record in records:
        given = int(record["given"][0])
        for name in ("chosen", "rejected"):
            ids = record[name].tolist()
            assert bytes(ids[given:-1]).decode() in (BETTER[name], SECOND[name]) and ids[-1] == 256
            policy, reference = (likelihood(model, ids[:given], ids[given:]) for model in theirs)
            rewards.append(beta * (policy - reference))
    margins = torch.stack(rewards).view(2, 2) @ torch.tensor([1.0, -1.0], dtype=torch.float64)
    found = objective.measure(after, batch)
    torch.testing.assert_close(
        found["loss"].double(), -torch.log(1 / (1 + torch.exp(-margins))).sum(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(found["margin"].double(), margins.sum(), rtol=1e-4, atol=1e-6)
    assert found["accuracy"] == (margins > 0).sum()
    assert torch.equal(objective.loss(after, batch)[0], found["loss"])


def test_at_first_nothing_is_preferred() -> None:
    """A model that is what it began with has margins of 0 and loses log 2 a record; its gradient already tells the two
    answers apart."""
    for model in (LLAMA, T5):
        objective = Preferences(model)
        objective.begin(settings(), lambda: copy.deepcopy(model))  # noqa: B023
        batch = objective.batch(records_of(objective, model, BETTER, SECOND), np.random.default_rng(0))
        loss, _ = objective.loss(model.eval(), batch)
        assert loss.item() == pytest.approx(2 * np.log(2))
        loss.backward()
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
        model.zero_grad()


@torch.no_grad()
def test_records_packed_are_records_alone() -> None:
    """For a decoder, and for an encoder-decoder."""
    for model in (LLAMA, T5):
        after, objective = changed(model), Preferences(model)
        objective.begin(settings(), lambda: copy.deepcopy(model))  # noqa: B023
        records = records_of(objective, model, BETTER, SECOND)
        generator = np.random.default_rng(0)
        together, _ = objective.loss(after, objective.batch(records, generator))
        alone = sum(objective.loss(after, objective.batch([record], generator))[0] for record in records)
        torch.testing.assert_close(together, alone)


def test_a_batch_that_only_fills_up_counts_for_nothing() -> None:
    """Where many processes share a step's batches, one may be there twice, its second time without targets."""
    objective = Preferences(LLAMA)
    objective.begin(settings(), lambda: copy.deepcopy(LLAMA))
    batch = objective.batch(records_of(objective, LLAMA, BETTER), np.random.default_rng(0))
    filler = replace(batch, target_count=0)
    loss, added = objective.loss(LLAMA, filler)
    assert loss == 0 and added == 0 and not any(objective.measure(LLAMA, filler).values())


@torch.no_grad()
def test_an_adapted_model_is_measured_from_itself() -> None:
    """Without a second copy: its margins are those of the merged model from the one before, and what is dropped out
    in training is not in that one."""
    pytest.importorskip("peft")
    adapted = adapt(tiny("llama:tiny", "preferences"), Lora(targets=("all",), dropout=0.2), seed=1)
    with torch.no_grad():
        for parameter in learning(adapted).values():
            parameter.add_(0.02)
    own = Preferences(adapted)
    own.begin(settings(), lambda: pytest.fail("no copy is made"))
    batch = own.batch(records_of(own, adapted, BETTER, SECOND), np.random.default_rng(0))
    before = own.before(adapted.train(), batch)
    assert adapted.training and torch.equal(before, own.before(adapted.eval(), batch))
    margins, _ = own.margins(adapted, batch)
    merged = adapted.merge()
    beside = Preferences(merged)
    beside.begin(settings(), lambda: tiny("llama:tiny", "preferences"))
    torch.testing.assert_close(margins, beside.margins(merged, batch)[0], rtol=1e-3, atol=1e-4)


def test_messages_are_in_the_words_of_the_template() -> None:
    """Prompt and answers as messages, a prompt as a text beside them, and a prompt that each answer repeats are one
    record, whose answers end with the assistant's turn."""
    forms = [
        {"prompt": ASKED, "chosen": SAID, "rejected": UNSAID},
        {"prompt": ASKED, "chosen": "Hello there.", "rejected": "No."},
        {"prompt": "Hi?", "chosen": SAID, "rejected": UNSAID},
        {"prompt": "Hi?", "chosen": [*ASKED, *SAID], "rejected": [*ASKED, *UNSAID]},
    ]
    records = records_of(Preferences(TALKER), TALKER, *forms)
    tokenizer = TALKER.tokenizer
    assert tokenizer is not None
    for record in records:
        given = int(record["given"][0])
        said = [tokenizer.decode(record[name], skip_special=False) for name in ("chosen", "rejected")]
        assert said == [tokenizer.chat(ASKED) + answer + "<|im_end|>" for answer in ("Hello there.", "No.")]
        assert tokenizer.decode(record["chosen"][:given], skip_special=False) == tokenizer.chat(ASKED)


def test_records_that_are_too_long_are_left_out() -> None:
    """Prompt and longer answer together, the ends counted."""
    records = [{"prompt": "a" * 3, "chosen": "b" * count, "rejected": "c"} for count in (4, 5)]
    assert len(records_of(Preferences(LLAMA), LLAMA, *records, length=9)) == 1


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen must be a list of"),
        ({"prompt": ASKED, "chosen": SAID, "rejected": [{"content": "b"}]}, "rejected must be a list of"),
        ({"prompt": ASKED, "chosen": SAID, "rejected": []}, "last message of rejected must be the assistant's"),
        ({"prompt": "a", "chosen": [*ASKED, *SAID], "rejected": UNSAID}, "must answer the same prompt"),
    ],
)
def test_what_is_no_preference_is_refused(record: dict[str, Any], said: str) -> None:
    """In one sentence that names the record."""
    with pytest.raises(DataError, match=f"0: .*{said}"):
        records_of(Preferences(TALKER), TALKER, record)


def test_probabilities_are_not_smoothed() -> None:
    """What other objectives add to their loss would make the two models' probabilities different things."""
    with pytest.raises(TrainingError, match="leave out training"):
        Preferences(LLAMA).begin(settings(label_smoothing=0.1), lambda: LLAMA)


def test_a_model_alone_is_asked_which_answer_is_likelier() -> None:
    """Evaluated, a model has nothing that it began with: its rewards are the probabilities themselves."""
    objective = Preferences(LLAMA)
    batch = objective.batch(records_of(objective, LLAMA, SECOND), np.random.default_rng(0))
    swapped = {**SECOND, "chosen": SECOND["rejected"], "rejected": SECOND["chosen"]}
    other = objective.batch(records_of(objective, LLAMA, swapped), np.random.default_rng(0))
    one, reverse = objective.measure(LLAMA, batch), objective.measure(LLAMA, other)
    torch.testing.assert_close(one["margin"], -reverse["margin"])
    assert one["margin"] > 0 and (one["accuracy"], reverse["accuracy"]) == (1, 0), "the shorter answer is likelier"


@pytest.fixture
def preferring(recipe: Any, tmp_path: Path) -> dict[str, Any]:
    """A recipe by which a model learns to answer in capitals, and one of which it begins."""
    words = ("rook", "king", "pawn", "queen")
    pairs = [{"prompt": f"{word} ", "chosen": word.upper(), "rejected": word} for word in words * 20]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    began = recipe("base", optimizer="muon", learning_rate=1e-2, steps=6)
    train({**began, "model": {"preset": "llama:tiny"}}, progress=False)
    chosen = recipe(objective="preferences", steps=12, sequence_length=64, batch_tokens=512, learning_rate=1e-3)
    return {
        **chosen,
        "model": {"from": began["run"]["directory"]},
        "data": {"train": str(tmp_path / "pairs.jsonl"), "held_out": 12},
    }


@pytest.mark.parametrize("lora", [None, {"rank": 4, "targets": "all"}])
def test_a_run_learns_what_is_preferred(preferring: dict[str, Any], lora: Any) -> None:
    """Nearly all held-out pairs come out right, with a margin; the model finds the chosen answers likelier than the one
    that it began with did; resumed, the run ends in the same bits."""
    if lora:
        pytest.importorskip("peft")
        preferring = {**preferring, "lora": lora}
        preferring["training"] = {**preferring["training"], "learning_rate": 1e-2}
    result = train(preferring, progress=False)
    rows = read_metrics(result.directory / "metrics.jsonl")
    assert rows[0]["loss"] == pytest.approx(np.log(2), rel=1e-3)
    assert rows[-1]["validation_accuracy"] > 0.9 and rows[-1]["validation_margin"] > 0.5
    assert rows[-1]["validation_loss"] < 0.5
    weights = (result.directory / "model.safetensors").read_bytes()
    shutil.rmtree(result.directory / "checkpoints" / "step-00000012")
    train(resume=result.directory, progress=False)
    assert (result.directory / "model.safetensors").read_bytes() == weights
    again = read_metrics(result.directory / "metrics.jsonl")
    assert [{**row, "elapsed": 0} for row in again] == [{**row, "elapsed": 0} for row in rows]
