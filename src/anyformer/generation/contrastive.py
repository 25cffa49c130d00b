"""Contrastive search: of the likeliest tokens the one that says least again what stands there already.

    score(v) = (1 - α) · p(v | before)  -  α · max over j of cos(h_v, h_j)

h_v is what the model's last layer makes of candidate v, h_j what it made of each token before: where a text begins to
turn in circles, the likeliest token looks just like an earlier one, and another candidate is taken.

The K = `top_k` candidates of a prompt are K rows of the batch, which share all that was read before: one pass sees all
of them, and between two steps the winner's newest token takes the place of the others'.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

from anyformer.generation.decoding import Constraint, Decoder, Ends, Step, most_new, must_be_numbers, pieces
from anyformer.generation.penalties import Said
from anyformer.generation.prompts import Prompts
from anyformer.generation.settings import Settings
from anyformer.parts.cache import Cache


class Thinker(Decoder, Protocol):
    """What contrastive search needs of a model."""

    def next_states(
        self,
        tokens: Tensor,
        cache: Cache,
        *,
        valid: Tensor | None = None,
        source: Tensor | None = None,
        source_valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [B, V] after the last of the tokens [B, T], and what the last layer makes of each, [B, T, D]."""
        ...


@torch.no_grad()
def contrastive_search(
    model: Thinker, prompts: Prompts, settings: Settings, *, constraint: Constraint | None = None
) -> Iterator[Step]:
    """Yield what each step chooses by contrast, with α = `penalty_alpha` (Su et al. 2022, "A Contrastive Framework for
    Neural Text Generation", section 3.2); otherwise as `choices` does.

    Where the model has learned no position for the last token to be looked at, that is the likeliest.
    """
    prompts, device = prompts.checked(), prompts.device
    rows, length = prompts.ids.shape
    most = most_new(model, length, settings)
    said, ends = Said(settings, prompts), Ends(settings, rows, device)
    cache = model.new_cache(rows, quantize=settings.quantize_cache)
    read = [
        model.next_states(part.ids, cache, valid=part.valid, source=part.source, source_valid=part.source_valid)
        for part in pieces(model, prompts, cache, settings.max_new_tokens, settings.top_k)
    ]
    logits = read[-1][0]
    must_be_numbers(logits)
    before_BTD = normalize(torch.cat([hidden for _, hidden in read], 1).float(), dim=-1)
    unread = None if prompts.valid is None else ~prompts.valid
    K = min(settings.top_k, logits.shape[-1])
    row = torch.arange(rows, device=device)
    cache.reorder(row.repeat_interleave(K))
    for step in range(most):
        scores = said.adjusted(logits)
        scores = scores if constraint is None else constraint.allowed(scores)
        said.must_go_on(scores, constraint is not None)
        shares_BK, ids_BK = scores.float().softmax(-1).topk(K)
        ids_BK = said.forced(ids_BK.T, first=step == 0, last=step == most - 1).T
        if length + step == model.positions:
            yield Step(ends.filled(ids_BK[:, 0]), logits)
            return
        after, hidden = model.next_states(ids_BK.reshape(-1, 1), cache)
        states_BKD = normalize(hidden.float(), dim=-1)[:, 0].unflatten(0, (rows, K))
        best_B = worth(shares_BK, states_BKD, before_BTD, unread, settings.penalty_alpha).argmax(-1)
        ids = ends.filled(ids_BK[row, best_B])
        yield Step(ids, logits)
        if step == most - 1 or ends.all():
            return
        said.add(ids)
        if constraint is not None:
            constraint.advance(ids)
        winners = row * K + best_B
        cache.copy_last(winners.repeat_interleave(K))
        logits = after[winners]
        before_BTD = torch.cat((before_BTD, states_BKD[row, best_B][:, None]), 1)
        unread = None if unread is None else torch.cat((unread, torch.zeros_like(unread[:, :1])), 1)


def worth(shares_BK: Tensor, states_BKD: Tensor, before_BTD: Tensor, unread_BT: Tensor | None, alpha: float) -> Tensor:
    """What each candidate is worth, [B, K]: its probability against how much its state is like one before it. States
    are of length 1; those of `unread` do not count."""
    alike_BKT = states_BKD @ before_BTD.mT
    alike_BKT = alike_BKT if unread_BT is None else alike_BKT.masked_fill(unread_BT[:, None], -torch.inf)
    worth_BK = (1 - alpha) * shares_BK - alpha * alike_BKT.amax(-1)
    # What is impossible is not made possible by being new.
    return worth_BK.masked_fill(shares_BK == 0, -torch.inf)
