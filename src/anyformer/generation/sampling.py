"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anyformer.generation.settings import Settings


def next_token(
    logits_BV: Tensor, settings: Settings, seen_BT: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """The next id of each row, [B]: the likeliest, or, at a temperature above 0, a draw. `seen_BT` is what each row has
    said, -1 where it has said nothing."""
    logits = adjusted(logits_BV.float(), settings, seen_BT)
    if settings.temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(distribution(logits, settings), 1, generator=generator)[:, 0]


def adjusted(scores_BV: Tensor, settings: Settings, seen_BT: Tensor | None) -> Tensor:
    """Logits, or logarithms of probabilities, after the repetition penalty and without bad words."""
    if settings.repetition_penalty != 1.0 and seen_BT is not None:
        scores_BV = penalized(scores_BV, seen_BT, settings.repetition_penalty)
    if settings.bad_words and seen_BT is not None:
        scores_BV = without(scores_BV, seen_BT, settings.banned)
    return scores_BV


def penalized(logits_BV: Tensor, seen_BT: Tensor, penalty: float) -> Tensor:
    """Logits of seen ids divided by the penalty, or multiplied where negative (Keskar et al. 2019, section 4.1)."""
    # The row's last id stands in for what was not said: an id counts once, however often it stands there.
    seen_BT = torch.where(seen_BT < 0, seen_BT[:, -1:], seen_BT)
    scores = logits_BV.gather(1, seen_BT)
    return logits_BV.scatter(1, seen_BT, torch.where(scores < 0, scores * penalty, scores / penalty))


def without(logits_BV: Tensor, seen_BT: Tensor, words: Sequence[Sequence[int]]) -> Tensor:
    """Logits in which an id is impossible where it would complete one of the words, sequences of ids."""
    logits = logits_BV.clone()
    T, V = seen_BT.shape[1], logits.shape[1]
    for *begun, last in words:
        if len(begun) <= T and 0 <= last < V:
            completes = (seen_BT[:, T - len(begun) :] == seen_BT.new_tensor(begun)).all(1)
            logits[:, last].masked_fill_(completes, -torch.inf)
    return logits


def distribution(logits_BV: Tensor, settings: Settings) -> Tensor:
    """Probabilities [B, V] after temperature, top-k, top-p and min-p, in that order."""
    # The likeliest at zero, so that a temperature near nothing makes others unlikely and not infinite.
    logits = (logits_BV - logits_BV.amax(-1, keepdim=True)) / max(settings.temperature, 1e-20)
    if 0 < settings.top_k < logits.shape[-1]:
        least = logits.topk(settings.top_k, -1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.sort(-1, descending=True)
        shares = ordered.softmax(-1)
        # A token stays while those before it hold less than p, so the likeliest always does.
        drop = shares.cumsum(-1) - shares >= settings.top_p
        logits = logits.masked_fill(torch.zeros_like(drop).scatter(1, order, drop), -torch.inf)
    shares = logits.softmax(-1)
    if settings.min_p > 0:
        shares = shares * (shares >= settings.min_p * shares.amax(-1, keepdim=True))
    return shares / shares.sum(-1, keepdim=True)
