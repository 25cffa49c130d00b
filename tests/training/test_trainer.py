"""What one step computes: gradients, skipped steps, validation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anyformer import text
from anyformer.data import NO_TARGET, Column, Corpus, Document, Window, Windows, encode_documents
from anyformer.errors import TrainingError
from anyformer.training import read_recipe
from anyformer.training.prepare import Text, starting_model
from anyformer.training.trainer import Trainer


def corpus(texts: list[str]) -> Corpus:
    """Texts as a corpus in memory."""
    parts = list(encode_documents([Document("", content) for content in texts], text.byte_level()))
    ids = [part.columns["tokens"] for part in parts]
    column = Column(np.concatenate(ids), np.cumsum([0, *map(len, ids[:-1])]))
    return Corpus({"tokens": column}, sum(part.bytes for part in parts))


#: Begins and ends every document.
END = text.byte_level().eos
TEXTS = ["Some text, longer than a window is, " * 3, "short", "x", "and one more of another length\n" * 2, "end."]


@pytest.fixture
def make(recipe: Any) -> Any:
    """A trainer on the texts above, always with the same weights."""

    def make(**training: Any) -> Trainer:
        chosen = read_recipe(recipe(**training))
        tokenizer = text.byte_level()
        model = starting_model(chosen, tokenizer)
        return Trainer(chosen, model, Text(tokenizer, corpus(TEXTS * 8), corpus(TEXTS)))

    return make


def gradients(trainer: Trainer) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in trainer.model.named_parameters()}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest |Δ| over the largest magnitude, of all gradients."""
    assert one.keys() == other.keys()
    scale = max(gradient.abs().max().item() for gradient in one.values())
    return max((one[name] - other[name]).abs().max().item() for name in one) / scale


def test_accumulated_is_the_full_batch(make: Any) -> None:
    """Micro-batches with different numbers of targets add up to the loss and gradient of the whole."""
    full, parts = make(), make(micro_batch_tokens=96)
    windows = full.loader.batch(3)
    assert len({(window.targets != NO_TARGET).sum() for window in windows}) > 1
    generator = np.random.default_rng(0)
    loss, loss_of_parts = full.gradients(windows, generator), parts.gradients(windows, generator)
    assert loss_of_parts == pytest.approx(loss, rel=1e-6)
    assert largest_difference(gradients(full), gradients(parts)) < 1e-5


def test_packed_is_separate(make: Any) -> None:
    """A window of several documents has the loss and gradients of its documents one by one, each from position 0."""
    trainer = make()
    windows = list(Windows(corpus(TEXTS), 32))
    assert max(len(window.documents) for window in windows) > 2
    generator = np.random.default_rng(0)
    packed = trainer.gradients(windows, generator), gradients(trainer)

    trainer.model.zero_grad()
    counts, losses, sums = [], [], {name: torch.zeros_like(p) for name, p in trainer.model.named_parameters()}
    for window in windows:
        borders = np.cumsum(window.documents)[:-1]
        for tokens, targets in zip(np.split(window.tokens, borders), np.split(window.targets, borders)):
            count = int((targets != NO_TARGET).sum())
            if count:
                counts.append(count)
                losses.append(
                    trainer.gradients([Window(tokens, targets, (len(tokens),), len(tokens))], generator) * count
                )
                for name, gradient in gradients(trainer).items():
                    sums[name] += gradient * count
                trainer.model.zero_grad()
    separate = {name: total / sum(counts) for name, total in sums.items()}
    assert sum(losses) / sum(counts) == pytest.approx(packed[0], rel=1e-6)
    assert largest_difference(packed[1], separate) < 1e-5


def test_padding_changes_nothing(make: Any) -> None:
    """The last window of a corpus, padded, has the loss and gradients of what is in it."""
    trainer = make()
    window = Windows(corpus(["ab" * 9]), 32)[0]
    assert window.documents == (20, 12)
    cut = Window(window.tokens[:20], window.targets[:20], (20,), 20)
    generator = np.random.default_rng(0)
    loss, padded = trainer.gradients([window], generator), gradients(trainer)
    trainer.model.zero_grad()
    assert trainer.gradients([cut], generator) == pytest.approx(loss, rel=1e-6)
    assert largest_difference(padded, gradients(trainer)) < 1e-5


def state(trainer: Trainer) -> list[Tensor]:
    moments = [
        value for optimizer in trainer.optimizers for state in optimizer.state.values() for value in state.values()
    ]
    return [tensor.clone() for tensor in [*trainer.model.parameters(), *moments]]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone(make: Any, poison: float) -> None:
    """The update is skipped and said to be; the next one goes on from the same state."""
    trainer = make()
    trainer.update(0, 1e-2)
    before = state(trainer)
    real = trainer.objective
    trainer.objective = Poisoned(real, poison)
    update = trainer.update(1, 1e-2)
    assert update.skipped and not math.isfinite(update.loss)
    assert all(torch.equal(a, b) for a, b in zip(before, state(trainer), strict=True))
    trainer.objective = real
    assert not trainer.update(1, 1e-2).skipped
    assert not torch.equal(before[0], state(trainer)[0])


class Poisoned:
    """An objective whose loss overflows."""

    def __init__(self, objective: Any, poison: float) -> None:
        self.objective, self.poison = objective, poison

    def __getattr__(self, name: str) -> Any:
        return getattr(self.objective, name)

    def loss(self, model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        loss, added = self.objective.loss(model, batch)
        return loss * self.poison, added


def test_the_gradient_is_clipped_and_its_norm_reported_before(make: Any) -> None:
    """The optimizer sees a gradient of the limit's norm, the metrics that of the gradient itself."""
    trainer = make(clip=1e-3)
    trainer.gradients(trainer.loader.batch(0), np.random.default_rng(0))
    norm = torch.stack([gradient.norm() for gradient in gradients(trainer).values()]).norm().item()
    trainer.model.zero_grad()
    clipped: list[float] = []
    trainer.optimizers[0].step = lambda: clipped.append(
        torch.stack([g.norm() for g in gradients(trainer).values()]).norm().item()
    )
    assert trainer.update(0, 1e-2).gradient_norm == pytest.approx(norm, rel=1e-5) and norm > 1e-2
    assert clipped == pytest.approx([1e-3], rel=1e-3)


def test_validation_is_the_loss_of_the_whole_held_out_text_in_bits_a_byte(make: Any) -> None:
    """Nats summed over every target, as bits over the bytes of the text."""
    trainer = make()
    measured = trainer.validate()
    stream, nats, begin = [], 0.0, 0
    for content in TEXTS:
        ids = torch.tensor([END, *content.encode(), END])
        end = begin + len(ids)
        for first in sorted({begin, *range(-(-begin // 32) * 32, end, 32)}):
            last = min(end, (first // 32 + 1) * 32)
            logits = trainer.model(ids[None, first - begin : last - begin]).logits[0]
            wanted = ids[first - begin + 1 : last - begin + 1]
            nats += torch.nn.functional.cross_entropy(logits[: len(wanted)], wanted, reduction="sum").item()
        stream, begin = [*stream, *ids.tolist()], end
    size = sum(len(content.encode()) for content in TEXTS)
    assert stream == trainer.held_out.corpus.tokens.tolist()
    assert measured["validation_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    # A document of n bytes has n + 1 targets: its bytes, and its end.
    assert measured["validation_loss"] == pytest.approx(nats / (size + len(TEXTS)), rel=1e-5)


def test_validation_leaves_training_as_it_was(make: Any) -> None:
    """No gradients, no change of mode, and the same figures when asked again."""
    trainer = make()
    first = trainer.validate()
    assert trainer.validate() == first and trainer.model.training
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_bfloat16_products_keep_float32_weights(make: Any) -> None:
    """The loss is near that of float32, and weights, moments and gradients stay float32."""
    exact, rounded = make(), make(precision="bfloat16")
    losses = [trainer.update(0, 1e-3).loss for trainer in (exact, rounded)]
    assert losses[0] != losses[1] and losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert {tensor.dtype for tensor in state(rounded)} == {torch.float32}


def test_what_a_model_cannot_learn_causally_is_refused(make: Any) -> None:
    """An encoder, or a decoder that sees ahead, would train on its own answers."""
    trainer = make()
    spec = trainer.model.spec
    encoder = spec.replace(encoder=spec.decoder, decoder=None)
    with pytest.raises(TrainingError, match=r"needs a decoder with a language-model head.* 'encoder'"):
        trainer.objective.check(encoder)
    (block,) = spec.decoder.pattern
    seeing = block.branches[0].mixer.replace(visibility="full")
    branches = (block.branches[0].replace(mixer=seeing), block.branches[1])
    stack = spec.decoder.replace(pattern=(block.replace(branches=branches),))
    with pytest.raises(TrainingError, match="needs attention of visibility 'causal'"):
        trainer.objective.check(spec.replace(decoder=stack))


def test_batches_without_targets_are_no_division_by_zero(make: Any) -> None:
    """Windows of single-token documents ask for nothing."""
    trainer = make(micro_batch_tokens=32)
    nothing = Window(np.zeros(32, np.int64), np.full(32, NO_TARGET), (1,) * 32, 32)
    something = replace(nothing, targets=np.zeros(32, np.int64), documents=(32,))
    assert trainer.gradients([nothing], np.random.default_rng(0)) == 0.0
    assert math.isfinite(trainer.gradients([nothing, something], np.random.default_rng(0)))


def test_layers_computed_again_take_the_same_step(make: Any) -> None:
    """The weights after a step with and without keeping activations are the same bits, with dropout on."""
    kept, again = make(dropout=0.2), make(dropout=0.2, checkpoint_activations=True)
    updates = [trainer.update(0, 1e-2) for trainer in (kept, again)]
    assert updates[0] == updates[1] and not updates[0].skipped
    assert again.model.decoder.checkpoint_activations and not kept.model.decoder.checkpoint_activations
    assert all(torch.equal(a, b) for a, b in zip(state(kept), state(again), strict=True))
