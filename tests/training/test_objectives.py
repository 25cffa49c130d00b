"""What each objective makes of windows of text, and that it is learned."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from anyformer import families, text
from anyformer.data import NO_TARGET, Corpus, Window, Windows
from anyformer.errors import TrainingError
from anyformer.model import Transformer, build
from anyformer.training import read_recipe, train
from anyformer.training.objectives import HIDDEN_SHARE, OBJECTIVES, SENTINELS, Masked, Spans
from anyformer.training.state import read_metrics

lengths = st.lists(st.integers(1, 90), min_size=1, max_size=12)
seeds = st.integers(0, 2**32)


def tiny(preset: str, tokenizer: text.Tokenizer) -> Transformer:
    """A fresh model with that tokenizer."""
    family, size = preset.split(":")
    model = build(families.named(family)(size, vocab_size=tokenizer.vocabulary_size), seed=0)
    model.tokenizer = tokenizer
    model.generation = {"decoder_start_token_id": 256}
    return model.train()


BERT = tiny("bert:tiny", text.byte_level().with_special(Masked.roles))
T5 = tiny("t5:tiny", text.byte_level().with_special({}, SENTINELS))


def windows_of(lengths: list[int], width: int, seed: int) -> list[Window]:
    """Windows of documents of random letters, each document between ends of text."""
    chance = np.random.default_rng(seed)
    documents = [np.array([256, *chance.integers(97, 123, length), 256]) for length in lengths]
    starts = np.cumsum([0, *(len(document) for document in documents[:-1])])
    return list(Windows(Corpus(np.concatenate(documents), starts, sum(lengths)), width))


@given(lengths, seeds)
def test_masked_hides_text_and_asks_for_what_it_hid(lengths: list[int], seed: int) -> None:
    """What is not asked for stands as it is; ends of text and padding are never asked for; one draw, one batch."""
    windows = windows_of(lengths, 40, seed)
    objective = Masked(BERT)
    batch = objective.batch(windows, np.random.default_rng(seed))
    again = objective.batch(windows, np.random.default_rng(seed))
    for row, window in enumerate(windows):
        tokens, targets = batch.inputs["tokens"][row].numpy(), batch.inputs["targets"][row].numpy()
        asked = targets != NO_TARGET
        assert (targets[asked] == window.tokens[asked]).all()
        assert (tokens[~asked] == window.tokens[~asked]).all()
        assert not asked[window.filled :].any() and 256 not in targets
    assert batch.inputs["documents"] == tuple(window.documents for window in windows)
    assert batch.target_count == int((batch.inputs["targets"] != NO_TARGET).sum())
    assert all(torch.equal(batch.inputs[name], again.inputs[name]) for name in ("tokens", "targets"))


def test_masked_hides_fifteen_percent_in_three_ways() -> None:
    """Over 100,000 letters: 15% asked for, of these 80% masked, 10% random, 10% as they are."""
    batch = Masked(BERT).batch(windows_of([100_000], 50_001, 0), np.random.default_rng(0))
    tokens, targets = batch.inputs["tokens"], batch.inputs["targets"]
    asked = targets != NO_TARGET
    shares = (tokens[asked] == 257).float().mean(), (tokens[asked] == targets[asked]).float().mean()
    assert float(asked.float().mean()) == pytest.approx(HIDDEN_SHARE, abs=0.005)
    assert [float(share) for share in shares] == pytest.approx([0.8, 0.1], abs=0.02)


@given(st.lists(st.integers(0, 256), min_size=1, max_size=400), seeds)
def test_spans_fit_back_into_their_gaps(document: list[int], seed: int) -> None:
    """Each sentinel stands once in the source and once in the targets, in order; what follows it there fills its gap;
    15% of the tokens are cut out, and at least one is kept."""
    objective = Spans(T5)
    source, wanted = objective.cut(document, np.random.default_rng(seed))
    sentinels = set(objective.sentinels)
    found = [token for token in source if token in sentinels]
    assert found == [token for token in wanted if token in sentinels] == objective.sentinels[: len(found)]
    assert wanted[-1] == 256
    gaps: dict[int, list[int]] = {}
    for token in wanted[:-1]:
        if token in sentinels:
            gap = gaps.setdefault(token, [])
        else:
            gap.append(token)
    filled = [each for token in source for each in (gaps[token] if token in sentinels else [token])]
    assert filled == document
    hidden = sum(map(len, gaps.values()))
    assert hidden == (0 if len(document) == 1 else max(1, round(0.15 * len(document))))
    assert all(gaps.values()) and len(source) > len(found)


def test_spans_say_how_long_their_rows_are() -> None:
    """The lengths of a window of one document are those of its batch."""
    window = windows_of([62], 64, 0)
    batch = Spans(T5).batch(window, np.random.default_rng(0))
    assert Spans(T5).lengths(64) == (batch.inputs["tokens"].shape[1], batch.inputs["source"].shape[1])


@given(lengths, seeds)
def test_spans_line_up(lengths: list[int], seed: int) -> None:
    """Each document's decoder reads the start and then its own targets, and there are as many as the encoder reads."""
    windows = windows_of(lengths, 40, seed)
    batch = Spans(T5).batch(windows, np.random.default_rng(seed))
    assert batch.target_count == int((batch.inputs["targets"] != NO_TARGET).sum())
    for row, window in enumerate(windows):
        count = len([end for end in np.cumsum(window.documents) if end <= window.filled])
        documents, sources = batch.inputs["documents"][row], batch.inputs["source_documents"][row]
        assert sum(documents) == batch.inputs["tokens"].shape[1] and sum(sources) == batch.inputs["source"].shape[1]
        begins = np.cumsum([0, *documents])[: count + 1]
        for begin, end in itertools.pairwise(begins):
            tokens, targets = batch.inputs["tokens"][row, begin:end], batch.inputs["targets"][row, begin:end]
            assert tokens[0] == 256 and torch.equal(tokens[1:], targets[:-1])
        assert (batch.inputs["targets"][row, begins[-1] :] == NO_TARGET).all()


@pytest.mark.parametrize(("objective", "model"), [("masked", BERT), ("spans", T5)])
def test_packed_is_separate(objective: str, model: Transformer) -> None:
    """A packed batch has the loss and the gradients of its documents one by one."""
    made = OBJECTIVES[objective](model)
    windows = windows_of([30, 3, 60, 17, 1, 9], 64, 0)
    whole = made.batch(windows, np.random.default_rng(3)).inputs
    model.eval()

    def gradients(batches: list[dict[str, Any]]) -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        total = torch.zeros(())
        for batch in batches:
            out = model(**batch)
            total = total + out.loss * out.target_count
        total.backward()
        return total.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    def alone(row: int) -> list[dict[str, Any]]:
        """Each document of a row in a call of its own."""
        tokens = torch.split(whole["tokens"][row], whole["documents"][row])
        targets = torch.split(whole["targets"][row], whole["documents"][row])
        calls = [{"tokens": a[None], "targets": b[None]} for a, b in zip(tokens, targets)]
        if "source" in whole:
            sources = torch.split(whole["source"][row], whole["source_documents"][row])
            calls = [{**call, "source": source[None]} for call, source in zip(calls, sources)]
        return [call for call in calls if (call["targets"] != NO_TARGET).any()]

    together, separate = gradients([whole]), gradients([call for row in range(len(windows)) for call in alone(row)])
    assert together[0] == pytest.approx(separate[0], rel=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in separate[1].values())
    assert max(float((together[1][name] - separate[1][name]).abs().max()) for name in together[1]) < 1e-5 * scale


@pytest.mark.parametrize(
    ("objective", "preset"), [("masked", "bert:tiny"), ("spans", "t5:tiny"), ("masked", "roberta:tiny")]
)
def test_a_run_learns_and_loads(recipe: Any, objective: str, preset: str) -> None:
    """From a recipe to a checkpoint with the objective's tokens; the loss falls, and no bits a byte are claimed."""
    chosen = {**recipe(objective=objective, steps=30, batch_tokens=512, validate_every=15), "model": {"preset": preset}}
    result = train(chosen, progress=False)
    rows = read_metrics(result.directory / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert result.validation_loss is not None and result.validation_bits_per_byte is None
    model = af.load(result.directory, device="cpu")
    assert model.tokenizer is not None and model.family == preset.partition(":")[0]
    needed = [*OBJECTIVES[objective].roles.values(), *OBJECTIVES[objective].tokens]
    assert all(model.tokenizer.id_of(token) is not None for token in needed)
    assert model.spec.output.embeddings.vocabulary == model.tokenizer.vocabulary_size


@pytest.mark.parametrize(
    ("objective", "preset", "why"),
    [
        (
            "masked",
            "llama:tiny",
            "needs an encoder with a masked-language-model head; this model is of shape 'decoder'",
        ),
        ("spans", "bert:tiny", "needs an encoder-decoder with a language-model head"),
        ("causal", "t5:tiny", "needs a decoder with a language-model head"),
    ],
)
def test_a_model_of_another_shape_is_refused(recipe: Any, objective: str, preset: str, why: str) -> None:
    """Before anything is read or written, in one sentence."""
    chosen = {**recipe(objective=objective), "model": {"preset": preset}}
    with pytest.raises(TrainingError, match=why):
        train(chosen, progress=False)
    assert not Path(read_recipe(chosen).run.directory).exists()


def test_a_checkpoint_without_the_tokens_is_refused(recipe: Any, tmp_path: Path) -> None:
    """Its vocabulary is fixed: there is no room for a mask."""
    model = build(families.bert("tiny", vocab_size=257), seed=0)
    model.tokenizer = text.byte_level()
    model.save(tmp_path / "bert")
    chosen = {**recipe(objective="masked"), "model": {"from": str(tmp_path / "bert")}}
    with pytest.raises(TrainingError, match=r"needs the special token '<\|mask\|>'"):
        train(chosen, progress=False)
