"""Heads: their formulas, and a loss in pieces that is the loss of the whole."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from gradients import draw, gradcheck
from odd_specs import odd_model
from torch import Tensor

from anyformer import spec
from anyformer.model import build, heads
from anyformer.model.heads import (
    LanguageModelHead,
    MaskedLanguageModelHead,
    SequenceClassificationHead,
    TokenClassificationHead,
    pool,
)
from anyformer.parts.masks import Tokens

DIM, LABELS = 4, 5
TOKENS = Tokens(3, start=0)
NORM = spec.Norm(kind="layer", bias=True)
VALID = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
PADDED = Tokens(3, position=torch.zeros(3, 3, dtype=torch.long), valid=VALID)


@pytest.fixture
def hidden() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(3, 3, DIM, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("cap", [None, 0.7])
def test_language_model(hidden: Tensor, bias: bool, scale: float | None, cap: float | None) -> None:
    """cap(scale · h Wᵀ + b), with right gradients."""
    head = draw(LanguageModelHead(spec.LanguageModelHead(bias=bias, scale=scale, soft_cap=cap), DIM, 7))
    wanted = hidden * (scale or 1.0) @ head.output.weight.T + (head.output.bias if bias else 0.0)
    wanted = wanted if cap is None else cap * torch.tanh(wanted / cap)
    assert torch.allclose(head(hidden, TOKENS), wanted)
    gradcheck(head, lambda h: head(h, TOKENS), hidden)


def test_masked_language_model(hidden: Tensor) -> None:
    """Dense, activation, norm, output, with right gradients."""
    head = draw(MaskedLanguageModelHead(spec.MaskedLanguageModelHead(norm=NORM, tied=False), DIM, 7), 0.5)
    wanted = head.output(head.norm(torch.nn.functional.gelu(head.dense(hidden))))
    assert torch.allclose(head(hidden, TOKENS), wanted)
    gradcheck(head, lambda h: head(h, TOKENS), hidden)


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("activation", [None, "tanh"])
def test_sequence_classification(hidden: Tensor, pooling: Any, activation: Any) -> None:
    """One row of logits a sequence, padding left out, with right gradients."""
    form = spec.SequenceClassificationHead(labels=LABELS, pooling=pooling, activation=activation)
    head = draw(SequenceClassificationHead(form, DIM))
    x = pool(hidden, PADDED, pooling)
    assert torch.allclose(head(hidden, PADDED), head.output(x if head.dense is None else head.dense(x).tanh()))
    assert head(hidden, PADDED).shape == (3, LABELS)
    gradcheck(head, lambda h: head(h, PADDED), hidden)


def test_token_classification(hidden: Tensor) -> None:
    """A row of logits a token, with right gradients."""
    head = draw(TokenClassificationHead(spec.TokenClassificationHead(labels=LABELS), DIM))
    assert torch.allclose(head(hidden, TOKENS), hidden @ head.output.weight.T + head.output.bias)
    gradcheck(head, lambda h: head(h, TOKENS), hidden)


def test_pooling_reads_real_tokens_only(hidden: Tensor) -> None:
    """First, last, mean and maximum of what is not padding, wherever padding stands; without any, of all."""
    rows = [hidden[i][VALID[i]] for i in range(3)]
    wanted = {
        "first": [row[0] for row in rows],
        "last": [row[-1] for row in rows],
        "mean": [row.mean(0) for row in rows],
        "max": [row.amax(0) for row in rows],
    }
    for how, vectors in wanted.items():
        assert torch.allclose(pool(hidden, PADDED, how), torch.stack(vectors))
        alone = pool(rows[0][None], Tokens(2, start=0), how)
        assert torch.allclose(alone[0], vectors[0])


@pytest.mark.parametrize("largest", [1, 11 * 7, 10**9])
@pytest.mark.parametrize("kind", ["language model", "masked language model", "token classification"])
def test_a_loss_in_chunks_is_the_loss_of_the_whole(kind: str, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum of the cross-entropies of the targets that ask for something, their number, and every gradient; in chunks of
    one row, of a few with a last one that is not whole, and all at once; -100 asks for nothing."""
    torch.manual_seed(0)
    head: Any = {
        "language model": lambda: LanguageModelHead(spec.LanguageModelHead(bias=True, soft_cap=3.0), DIM, 7),
        "masked language model": lambda: MaskedLanguageModelHead(spec.MaskedLanguageModelHead(norm=NORM), DIM, 7),
        "token classification": lambda: TokenClassificationHead(spec.TokenClassificationHead(labels=7), DIM),
    }[kind]()
    draw(head)
    hidden = torch.randn(3, 8, DIM, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 7, (3, 8))
    targets[0, :5] = targets[2] = heads.IGNORED
    tokens = Tokens(8, start=0)
    logits = head(hidden, tokens).flatten(0, 1)
    asked = targets.flatten() != -100
    wanted = -logits.log_softmax(-1)[asked, targets.flatten()[asked]].sum()
    gradients = torch.autograd.grad(wanted, [hidden, *head.parameters()])
    monkeypatch.setattr(heads, "LARGEST_LOGITS", largest)
    total, count = head.loss(hidden, tokens, targets)
    assert int(count) == int(asked.sum()) == 11
    assert torch.allclose(total, wanted)
    for found, right in zip(torch.autograd.grad(total, [hidden, *head.parameters()]), gradients, strict=True):
        assert torch.allclose(found, right)
    with torch.no_grad():
        assert torch.allclose(head.loss(hidden, tokens, targets)[0], wanted)


def test_chunks_never_hold_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    """No product of the head is larger than the limit, and what is kept for the backward pass is no logits."""
    monkeypatch.setattr(heads, "LARGEST_LOGITS", 4 * 50)
    head = LanguageModelHead(spec.LanguageModelHead(), DIM, 50)
    hidden, targets = torch.randn(2, 16, DIM, requires_grad=True), torch.randint(0, 50, (2, 16))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, _ = head.loss(hidden, Tokens(16, start=0), targets)
    assert max(kept) < 50 * 4 * 2
    total.backward()
    assert hidden.grad is not None and head.output.weight.grad is not None


def test_nothing_asked_is_a_loss_of_zero() -> None:
    """Not a division by zero; and its gradient is zero."""
    model = build(odd_model(random.Random(1), "decoder"), seed=0)
    tokens = torch.zeros(2, 4, dtype=torch.long)
    out = model(tokens, targets=torch.full_like(tokens, -100))
    assert out.loss is not None and out.target_count is not None
    assert (float(out.loss.detach()), int(out.target_count)) == (0.0, 0)
    out.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("kind", ["sequence", "token"])
def test_dropout_before_the_labels_acts_in_training_only(kind: str) -> None:
    """Half of the features, scaled."""
    form = {"labels": 2, "dropout": 0.5}
    head: Any = (
        SequenceClassificationHead(spec.SequenceClassificationHead(activation=None, **form), 1000)
        if kind == "sequence"
        else TokenClassificationHead(spec.TokenClassificationHead(**form), 1000)
    )
    torch.nn.init.ones_(head.output.weight)
    torch.nn.init.zeros_(head.output.bias)
    hidden = torch.ones(1, 3, 1000)
    assert (head.eval()(hidden, TOKENS) == 1000).all()
    found = head.train()(hidden, TOKENS)
    assert found.ne(1000).all() and found.sub(1000).abs().lt(200).all()


@pytest.mark.parametrize("largest", [1 << 24, 21])
def test_what_training_adds_to_the_loss(hidden: Tensor, monkeypatch: pytest.MonkeyPatch, largest: int) -> None:
    """Smoothed labels are the mean over all labels in part, z-loss is log²Z, in chunks too; evaluation has neither."""
    monkeypatch.setattr(heads, "LARGEST_LOGITS", largest)
    head = draw(LanguageModelHead(spec.LanguageModelHead(), DIM, 7))
    targets = torch.tensor([[1, -100, 6], [0, 3, 2], [5, 5, -100]])
    logits, real = head(hidden, TOKENS), targets != -100
    surprise = -logits.log_softmax(-1)
    plain = surprise.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    head.label_smoothing, head.z_loss = 0.1, 0.01
    wanted = 0.9 * plain + 0.1 * surprise.mean(-1) + 0.01 * logits.logsumexp(-1).square()
    assert torch.allclose(head.train().loss(hidden, TOKENS, targets)[0], wanted[real].sum())
    assert torch.allclose(head.eval().loss(hidden, TOKENS, targets)[0], plain[real].sum())


def test_a_loss_in_chunks_can_be_differentiated_more_than_once(hidden: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a backward pass scales stays as it was found; a frozen matrix gets nothing; without gradients none is
    made."""
    monkeypatch.setattr(heads, "LARGEST_LOGITS", 14)
    head = draw(LanguageModelHead(spec.LanguageModelHead(bias=True, soft_cap=2.0), DIM, 7))
    head.train().label_smoothing, head.z_loss = 0.1, 0.01
    targets = torch.tensor([[1, -100, 6], [0, 3, 2], [5, 5, -100]])
    gradcheck(head, lambda h: head.loss(h, TOKENS, targets)[0], hidden)
    total, _ = head.loss(hidden, TOKENS, targets)
    once = torch.autograd.grad(total, hidden, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(3 * total, hidden)[0], 3 * once)
    head.output.weight.requires_grad_(False)
    head.loss(hidden, TOKENS, targets)[0].backward()
    assert head.output.weight.grad is None and head.output.bias.grad is not None
    assert hidden.grad is not None and torch.equal(hidden.grad, once)
    with torch.no_grad():
        assert torch.allclose(head.loss(hidden, TOKENS, targets)[0], total)


@pytest.mark.parametrize("largest", [1 << 24, 14])
def test_logits_that_nobody_asks_for_are_not_made(
    hidden: Tensor, monkeypatch: pytest.MonkeyPatch, largest: int
) -> None:
    """Of nine tokens four have targets: four rows reach the output, and the others' gradient is zero."""
    monkeypatch.setattr(heads, "LARGEST_LOGITS", largest)
    head = draw(LanguageModelHead(spec.LanguageModelHead(), DIM, 7))
    targets = torch.full((3, 3), -100)
    targets[0, 1], targets[1, 0], targets[1, 2], targets[2, 2] = 3, 0, 6, 2
    rows: list[int] = []
    head.output.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    total, count = head.loss(hidden, TOKENS, targets)
    total.backward()
    assert (sum(rows), int(count)) == (4, 4)
    assert hidden.grad is not None and torch.equal(hidden.grad.any(-1), targets != -100)
