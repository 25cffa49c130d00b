"""What heads attend to, in numbers: a few scores a head, from its attention weights.

On any text: the token before (`previous`), the first token (`first`: where heads that have nothing to do look, Xiao et
al. 2023, https://arxiv.org/abs/2309.17453, section 3.1), the query itself (`itself`), the `near` keys around it
(`local`), and how spread out it all is (`entropy`). On random tokens that come twice, which nothing but looking back
predicts: what followed the same token before (`induction`), and that token (`duplicate`); Olsson et al. 2022,
https://arxiv.org/abs/2209.11895, "prefix matching".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inspection.tracing import Trace, trace
from anyformer.model import Transformer

OF_TEXT = ("previous", "first", "itself", "local", "entropy")
OF_REPEATS = ("induction", "duplicate")
#: Keys to either side, and the query itself, that count as near.
NEAR = 3


@dataclass(frozen=True)
class HeadScores:
    """Scores of every head of L attentions.

    branches  their names (`decoder.layers.3.attention`)
    scores    by name [L, H] float32; shares of attention from 0 to 1. `entropy` is a share too: of the most that the
              keys in sight allow. NaN where an attention has fewer heads than another
    """

    branches: list[str]
    scores: dict[str, Tensor]

    def best(self, name: str, count: int = 5) -> list[tuple[str, int, float]]:
        """The heads that score highest: (branch, head, score)."""
        found = self.scores[name].nan_to_num(-torch.inf)
        heads = found.shape[1]
        top = found.flatten().topk(min(count, found.numel()))
        return [
            (self.branches[where // heads], where % heads, score)
            for where, score in zip(top.indices.tolist(), top.values.tolist())
        ]


@torch.no_grad()
def head_scores(
    model: Transformer, tokens: Tensor, pattern: str = "**.layers.*.attention", **given: Tensor
) -> HeadScores:
    """`previous`, `first`, `itself`, `local` and `entropy` of self-attention over tokens [B, T], T ≥ 2: means over rows
    and over queries from the second on. Raises `InputError` for a pattern that names no attention."""
    if tokens.shape[1] < 2:
        raise InputError("one token has nothing before it to attend to; give at least two")
    with trace(model, f"{pattern}.weights", reduce=lambda site, weights: _of_text(_square(site, weights))) as t:
        model(tokens, **given)
    return _scores(t, OF_TEXT)


@torch.no_grad()
def repeated_scores(
    model: Transformer,
    length: int = 32,
    rows: int = 4,
    seed: int = 0,
    first: int | None = None,
    pattern: str = "**.layers.*.attention",
) -> HeadScores:
    """`induction` and `duplicate` of self-attention, over `length` random tokens and the same again, in `rows` rows.

    `first` is put before them, for models that want a token that begins a text. An encoder-decoder reads them in both
    stacks. Raises `InputError` for a model that has not learned so many positions."""
    tokens = repeated_tokens(model, length, rows, seed, first)
    given = {"source": tokens} if model.spec.shape == "encoder-decoder" else {}

    def reduced(site: str, weights: Tensor) -> Tensor:
        return _of_repeats(_square(site, weights), length)

    with trace(model, f"{pattern}.weights", reduce=reduced) as t:
        model(tokens, **given)
    return _scores(t, OF_REPEATS)


def repeated_tokens(model: Transformer, length: int, rows: int, seed: int = 0, first: int | None = None) -> Tensor:
    """Ids [rows, 2 · length] drawn evenly from the vocabulary, the second half the same as the first; where `first` is
    given, one more before them."""
    total = 2 * length + (first is not None)
    if model.positions is not None and total > model.positions:
        raise InputError(f"this model has learned {model.positions} positions, and {total} are asked for; take fewer")
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(0, model.vocabulary, (rows, length), generator=generator).to(model.device)
    before = [] if first is None else [once.new_full((rows, 1), first)]
    return torch.cat([*before, once, once], 1)


def _of_text(weights: Tensor) -> Tensor:
    """[scores of a text, H], of weights [B, H, T, T]."""
    T = weights.shape[-1]
    seen = (weights > 0).sum(-1)[:, :, 1:].clamp(min=2)
    entropy = -(weights * weights.clamp(min=1e-30).log()).sum(-1)[:, :, 1:] / seen.log()
    distance = torch.arange(T, device=weights.device)[:, None] - torch.arange(T, device=weights.device)
    local = torch.where(distance.abs() <= NEAR, weights, 0).sum(-1)[:, :, 1:]
    itself = weights.diagonal(0, -2, -1)[:, :, 1:]
    found = (weights.diagonal(-1, -2, -1), weights[:, :, 1:, 0], itself, local, entropy)
    return torch.stack([score.mean((0, 2)) for score in found])


def _of_repeats(weights: Tensor, length: int) -> Tensor:
    """[scores of repeats, H]: of the second half, to what followed the same token in the first, and to that token."""
    found = (weights.diagonal(1 - length, -2, -1), weights.diagonal(-length, -2, -1))
    return torch.stack([score[..., -length:].mean((0, 2)) for score in found])


def _square(site: str, weights: Tensor) -> Tensor:
    if weights.shape[-1] != weights.shape[-2]:
        raise InputError(f"'{site}' attends from one text to another; these scores are of self-attention alone")
    return weights


def _scores(t: Trace, names: tuple[str, ...]) -> HeadScores:
    found = {site.removesuffix(".weights"): scores.float().cpu() for site, scores in t.items()}
    most = max(scores.shape[1] for scores in found.values())
    padded = [F.pad(scores, (0, most - scores.shape[1]), value=torch.nan) for scores in found.values()]
    return HeadScores(list(found), dict(zip(names, torch.stack(padded, 1))))
