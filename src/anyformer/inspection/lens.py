"""The logit lens: what each layer would answer if it were the last (nostalgebraist 2020, "interpreting GPT: the logit
lens"). Its residual stream goes through the final norm, with its own statistics, and through the head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer import spec
from anyformer.errors import InputError
from anyformer.inspection.tracing import Trace, trace
from anyformer.model import Transformer
from anyformer.parts.masks import Tokens

#: Heads that answer for every position.
ANSWERING = (spec.LanguageModelHead, spec.MaskedLanguageModelHead, spec.TokenClassificationHead)


@dataclass(frozen=True)
class Lens:
    """What each layer would answer: row 0 is the embeddings', row l + 1 layer l's; the last is the model's own answer.

    sites          the names of the streams that were read, L + 1 of them
    answers        [L + 1, B, T, top] ids, the likeliest first
    probabilities  [L + 1, B, T, top] float32
    entropy        [L + 1, B, T] nats
    divergence     [L + 1, B, T] nats: KL from the layer's distribution to the model's own, KL(own || layer's)
    """

    sites: list[str]
    answers: Tensor
    probabilities: Tensor
    entropy: Tensor
    divergence: Tensor

    def settled(self) -> Tensor:
        """[B, T]: the first row from which on the likeliest answer is the model's own."""
        best = self.answers[..., 0]
        same = (best == best[-1]).flip(0).cumprod(0).flip(0)
        return len(best) - same.sum(0)


@torch.no_grad()
def lens(model: Transformer, tokens: Tensor, top: int = 5, **given: Tensor) -> Lens:
    """Read every layer of the stack that answers, for tokens [B, T] and what else the model is given (`source=` ...).

    Raises `InputError` for a model whose head does not answer for every position."""
    check_answers(model)
    with trace(model, *streams(model)) as t:
        model(tokens, **given)
    sites, own = list(t), _logs(logits_of(model, t[list(t)[-1]]))
    top = min(top, own.shape[-1])
    rows = []
    for _, logs in _each_log(model, t):
        best = logs.topk(top, -1)
        shares = logs.exp()
        entropy, divergence = -(shares * logs).sum(-1), (own.exp() * (own - logs)).sum(-1)
        rows.append((best.indices, best.values.exp(), entropy, divergence))
    answers, probabilities, entropy, divergence = (torch.stack(column) for column in zip(*rows))
    return Lens(sites, answers, probabilities, entropy, divergence)


def streams(model: Transformer) -> list[str]:
    """The sites of the residual stream in the stack that answers: its embeddings, then what leaves each layer."""
    name = "decoder" if model.decoder is not None else "encoder"
    depth = len(model.output_stack.layers)
    return [f"{name}.embeddings", *(f"{name}.layers.{index}.residual_after" for index in range(depth))]


def logits_of(model: Transformer, stream: Tensor) -> Tensor:
    """What the head makes of a residual stream [B, T, D], through the final norm with the stream's own statistics:
    [B, T, V]. Of the last layer's it is the model's answer."""
    norm, head = model.output_stack.norm, model.head
    assert head is not None
    return head(stream if norm is None else norm(stream), Tokens(stream.shape[1], device=stream.device, start=0))


def check_answers(model: Transformer) -> None:
    """Raises `InputError` where there are no logits for every position."""
    if not isinstance(model.spec.head, ANSWERING):
        raise InputError(f"this model's head ({model.spec.head.kind}) has no answer at each position to look at")


def _each_log(model: Transformer, t: Trace) -> Iterator[tuple[str, Tensor]]:
    """The log-probabilities [B, T, V] of one layer at a time: all of them together would be large."""
    return ((site, _logs(logits_of(model, stream))) for site, stream in t.items())


def _logs(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(-1)
