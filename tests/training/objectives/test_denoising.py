"""What was hidden is to be found: single tokens, and stretches; and that a run of each learns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from objectives import assert_packed_is_separate, documents, tiny, windows_of
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

import anyformer as af
from anyformer import families, text
from anyformer.data import NO_TARGET, Column, Corpus, Windows
from anyformer.errors import TrainingError
from anyformer.model import Transformer, build
from anyformer.training import read_recipe, train
from anyformer.training.objectives import HIDDEN_SHARE, OBJECTIVES, Masked, Spans
from anyformer.training.state import read_metrics

lengths = st.lists(st.integers(1, 90), min_size=1, max_size=12)
seeds = st.integers(0, 2**32)


BERT = tiny("bert:tiny", "masked")
T5, LLAMA = tiny("t5:tiny", "spans"), tiny("llama:tiny", "spans")

SENTENCE = "unbelievable kings and unbelievably believable queens unking themselves"
LEARNED = text.train_bpe([SENTENCE * 20], 290)


def pieces() -> text.Tokenizer:
    """A WordPiece vocabulary."""
    parts = ["[UNK]", "un", "##believ", "##able", "##ably", "kings", "##king", "##ed", "them", "##sel", "##ves", ","]
    backend = Backend(models.WordPiece({part: index for index, part in enumerate(parts)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return text.Tokenizer(backend)


PIECES = pieces()


@given(lengths, seeds)
def test_masked_hides_text_and_asks_for_what_it_hid(lengths: list[int], seed: int) -> None:
    """What is not asked for stands as it is; ends of text and padding are never asked for; one draw, one batch."""
    windows = list(windows_of(lengths, 40, seed))
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


@pytest.mark.parametrize("tokenizer", [LEARNED, PIECES], ids=["learned", "pieces"])
def test_whole_words_are_hidden_whole(tokenizer: text.Tokenizer) -> None:
    """Of every word all tokens are asked for or none, 15% of the words, and never across the border of a document."""
    model = tiny("bert:tiny", "masked", tokenizer=tokenizer)
    assert model.tokenizer is not None
    objective = Masked(model)
    objective.begin(SimpleNamespace(whole_words=True), lambda: model)
    ids = model.tokenizer.encode("unbelievable kings unbelievably unkinged themselves, " * 8)
    [window] = Windows(Corpus({"tokens": Column(np.array(ids * 2), np.array([0, len(ids)]))}, 0), 2 * len(ids))
    begins = np.array(model.tokenizer.begins_word())[window.tokens]
    begins[[0, len(ids)]] = True
    assert begins.mean() < 0.9
    generator, hidden = np.random.default_rng(0), []
    for _ in range(400):
        asked = objective.hide(window, generator)[1] != NO_TARGET
        words = np.split(asked, np.flatnonzero(begins)[1:])
        assert all(word.all() or not word.any() for word in words)
        hidden += [word[0] for word in words]
    assert np.mean(hidden) == pytest.approx(HIDDEN_SHARE, abs=0.015)


def test_masked_hides_fifteen_percent_in_three_ways() -> None:
    """Over 100,000 letters: 15% asked for, of these 80% masked, 10% random, 10% as they are."""
    batch = Masked(BERT).batch(list(windows_of([100_000], 50_001, 0)), np.random.default_rng(0))
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


@pytest.mark.parametrize("model", [T5, LLAMA])
def test_spans_say_how_long_their_rows_are(model: Transformer) -> None:
    """The lengths of a window of one document are those of its batch."""
    windows, objective = windows_of([62], 64, 0), Spans(model)
    inputs = objective.batch(list(windows), np.random.default_rng(0)).inputs
    source = inputs["source"].shape[1] if "source" in inputs else None
    assert objective.lengths(windows) == (inputs["tokens"].shape[1], source)


@given(lengths, seeds)
def test_spans_line_up(lengths: list[int], seed: int) -> None:
    """Each document's decoder reads the start and then its own targets, and there are as many as the encoder reads; a
    decoder alone reads what is left, and is asked for the rest; no position is padding."""
    windows = list(windows_of(lengths, 40, seed))
    inputs = Spans(T5).batch(windows, np.random.default_rng(seed)).inputs
    count = len(documents(windows))
    assert len(inputs["documents"][0]) == len(inputs["source_documents"][0]) == count
    assert sum(inputs["source_documents"][0]) == inputs["source"].shape[1]
    assert (inputs["targets"] != NO_TARGET).all()
    targets = torch.split(inputs["targets"][0], inputs["documents"][0])
    for tokens, wanted in zip(torch.split(inputs["tokens"][0], inputs["documents"][0]), targets, strict=True):
        assert tokens[0] == 256 and torch.equal(tokens[1:], wanted[:-1])

    alone = Spans(LLAMA).batch(windows, np.random.default_rng(seed)).inputs
    rows = zip(*(torch.split(alone[name][0], alone["documents"][0]) for name in ("tokens", "targets")))
    for (tokens, wanted), asked in zip(rows, targets, strict=True):
        given_ = int((wanted == NO_TARGET).sum()) + 1
        assert torch.equal(wanted[given_ - 1 :], asked) and torch.equal(tokens[given_:], asked[:-1])


@pytest.mark.parametrize(("objective", "model"), [(Masked, BERT), (Spans, T5), (Spans, LLAMA)])
def test_packed_is_separate(objective: type[Masked | Spans], model: Transformer) -> None:
    """A packed batch has the loss and the gradients of its documents one by one."""
    windows = list(windows_of([30, 3, 60, 17, 1, 9], 64, 0))
    assert_packed_is_separate(model, objective(model).batch(windows, np.random.default_rng(3)))


@torch.no_grad()
def test_right_answers_are_counted() -> None:
    """At a validation of hidden tokens: as many as the logits of a pass of their own find, and the same loss."""
    batch = Masked(BERT).batch(list(windows_of([300], 64, 0)), np.random.default_rng(0))
    measured = Masked(BERT.eval()).measure(BERT, batch)
    inputs = {name: value for name, value in batch.inputs.items() if name != "targets"}
    logits, targets = BERT(**inputs).logits, batch.inputs["targets"]
    assert int(measured["accuracy"]) == int((logits.argmax(-1) == targets).sum())
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert float(measured["loss"]) == pytest.approx(float(wanted), rel=1e-5)


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
        ("spans", "bert:tiny", "needs an encoder-decoder or a decoder with a language-model head"),
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
