"""Scoring texts: every token once, with the context promised, and the same figures however the work is cut up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer import families, model, text
from anyformer.errors import InputError
from anyformer.inspection.evaluation import likelihood
from anyformer.inspection.evaluation.likelihood import Evaluation, evaluate, spans, token_ids

TEXT = "A short text, with naïve characters — and some more of it, so that windows are many. " * 3


@pytest.fixture(scope="module")
def decoder() -> model.Transformer:
    """A llama of bytes with fresh weights."""
    torch.set_num_threads(1)
    built = model.build(families.llama("tiny"), seed=1).eval()
    built.tokenizer = text.byte_level()
    return built


def by_hand(decoder: model.Transformer, ids: list[int], window: int, stride: int) -> float:
    """The nats of ids[1:], one token at a time, each from its own forward pass over the tokens it may see."""
    total = 0.0
    for index in range(1, len(ids)):
        # The window that scores a token ends at the first of window, window + stride ... that reaches it.
        end = min(len(ids) - 1, window + max(0, math.ceil((index - window) / stride)) * stride)
        seen = torch.tensor([ids[max(0, end - window) : index]])
        with torch.no_grad():
            total -= decoder(seen).logits[0, -1].log_softmax(-1)[ids[index]].item()
    return total


@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 40))
def test_every_prediction_counts_once_with_enough_before_it(predictions: int, window: int, stride: int) -> None:
    """Windows cover all predictions, none twice; each fits, and scores nothing with less context than promised."""
    stride = min(stride, window)
    counted = []
    for begin, end, new in spans(predictions, window, stride):
        assert 0 < end - begin <= window and begin <= new < end
        assert begin == 0 or new - begin >= window - stride
        counted += range(new, end)
    assert counted == list(range(predictions))


@pytest.mark.parametrize(("window", "stride"), [(512, 512), (32, 32), (32, 16), (32, 7), (20, 1)])
def test_loss_is_that_of_each_token_by_itself(decoder: model.Transformer, window: int, stride: int) -> None:
    """The nats of a text are the sum over its tokens, each predicted from exactly the tokens in its window."""
    sample = TEXT[:90]
    found = evaluate(decoder, sample, window=window, stride=stride)
    ids = token_ids(decoder, sample)
    assert found.nats == pytest.approx(by_hand(decoder, ids, window, stride), rel=1e-5)
    assert (found.tokens, found.bytes) == (len(sample.encode()), len(sample.encode()))


def test_batches_change_nothing(decoder: model.Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows side by side, the last of them filled up, cost the same nats as windows one by one."""
    together = evaluate(decoder, TEXT, window=24, stride=12)
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 1)
    alone = evaluate(decoder, TEXT, window=24, stride=12)
    assert together.tokens == alone.tokens
    assert together.nats == pytest.approx(alone.nats, rel=1e-6)


def test_the_first_token_is_predicted_from_the_start_token(decoder: model.Transformer) -> None:
    """With a start token even a text of one token has a loss; it is that after the start token alone."""
    assert decoder.tokenizer is not None
    found = evaluate(decoder, "x")
    start = torch.tensor([[decoder.tokenizer.bos]])
    with torch.no_grad():
        wanted = -decoder(start).logits[0, -1].log_softmax(-1)[ord("x")].item()
    assert found.tokens == 1 and found.loss == pytest.approx(wanted, rel=1e-5)


def test_more_context_is_used(decoder: model.Transformer) -> None:
    """A smaller stride gives tokens more context, so the figures differ: the stride is not ignored."""
    assert evaluate(decoder, TEXT, window=16, stride=1).nats != evaluate(decoder, TEXT, window=16, stride=16).nats


def test_progress_ends_at_all_tokens(decoder: model.Transformer) -> None:
    """Progress rises to the number of tokens scored."""
    told: list[tuple[int, int]] = []
    found = evaluate(decoder, TEXT, window=24, progress=lambda done, tokens: told.append((done, tokens)))
    assert told == sorted(told) and told[-1] == (found.tokens, found.tokens)


def test_units() -> None:
    """Loss, perplexity and bits per byte of two bits a byte, two bytes a token, by definition; evaluations add up."""
    one = Evaluation(nats=4 * math.log(2), tokens=1, bytes=2)
    both = one + one
    assert (both.tokens, both.bytes, both.bits_per_byte) == (2, 4, pytest.approx(2))
    assert both.loss == pytest.approx(4 * math.log(2)) and both.perplexity == pytest.approx(16)
    assert math.isnan(Evaluation().loss) and math.isinf(Evaluation(1e6, 1, 1).perplexity)


def test_training_mode_is_left_as_it_was(decoder: model.Transformer) -> None:
    """Evaluation runs without dropout and puts the mode back."""
    decoder.train()
    evaluate(decoder, "abc")
    assert decoder.training
    decoder.eval()


@pytest.mark.parametrize(("window", "stride", "complaint"), [(8, 9, "stride of 9"), (8, 0, "stride of 0")])
def test_windows_that_skip_tokens_are_refused(
    decoder: model.Transformer, window: int, stride: int, complaint: str
) -> None:
    """A stride that would leave tokens out, or never move, is an error that says so."""
    with pytest.raises(InputError, match=complaint):
        evaluate(decoder, TEXT, window=window, stride=stride)


def test_models_that_do_not_read_from_left_to_right_are_refused() -> None:
    """An encoder has no loss from left to right; the message names its shape and head."""
    with pytest.raises(InputError, match="shape 'encoder' with a head of kind 'masked_language_model'"):
        evaluate(model.build(families.bert("tiny")), TEXT)  # type: ignore[attr-defined]


def test_a_model_without_a_tokenizer_is_refused() -> None:
    """Without a tokenizer there is no reading a text; the message says so."""
    with pytest.raises(InputError, match="no tokenizer"):
        evaluate(model.build(families.llama("tiny")), TEXT)
