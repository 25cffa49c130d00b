"""From logits to the next token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.generation.settings import Settings

#: So many numbers are drawn for a row at a time.
_AHEAD = 64
#: So many logits are a run of `likeliest`.
_RUN = 256
#: So many of the likeliest mostly hold p; to find them takes a tenth of the time that it takes to sort a vocabulary.
_FOREMOST = 256


class Draws:
    """Uniform numbers in (0, 1], one a row and step; a row's come from its seed alone, on every device the same.

    `seeds` as in `Settings.seed`. Raises `InputError` where there is one a row, but not as many as rows.
    """

    def __init__(self, seeds: int | Sequence[int] | None, rows: int, device: torch.device | str) -> None:
        self.device = device
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds_of(seeds, rows)]
        self._waiting: list[Tensor] = []

    def next(self) -> Tensor:
        """The next number of each row, [B] float64."""
        if not self._waiting:
            drawn = [torch.rand(_AHEAD, dtype=torch.float64, generator=each) for each in self._generators]
            self._waiting = list((1 - torch.stack(drawn, 1)).to(self.device).flip(0))
        return self._waiting.pop()


def seeds_of(seeds: int | Sequence[int] | None, rows: int) -> Sequence[int]:
    """The seed of each row, as `Settings.seed` has it. Raises `InputError` for one a row that are not as many."""
    if seeds is None:
        return torch.randint(2**62, (rows,)).tolist()
    if isinstance(seeds, int):
        return [seeds + row for row in range(rows)]
    if len(seeds) != rows:
        raise InputError(f"there are {len(seeds)} seeds for {rows} rows; give one for each, or one for all together")
    return seeds


def next_token(logits_BV: Tensor, settings: Settings, draws: Draws | None) -> Tensor:
    """The next id of each row, [B]: the likeliest, or, at a temperature above 0, a draw."""
    if draws is None or settings.temperature == 0:
        return likeliest(logits_BV)
    numbers_B = draws.next()
    if settings.batch_invariant:
        # How many of its likeliest tokens are looked at may hang on other rows, and with it what ties come to.
        each = zip(logits_BV.split(1), numbers_B.split(1))
        return torch.cat([_draw(logits, number, settings) for logits, number in each])
    return _draw(logits_BV, numbers_B, settings)


def _draw(logits_BV: Tensor, numbers_B: Tensor, settings: Settings) -> Tensor:
    shares, ids = kept(logits_BV.float(), settings)
    at = drawn(shares, numbers_B)
    return at if ids is None else ids.gather(1, at[:, None])[:, 0]


def likeliest(logits_BV: Tensor) -> Tensor:
    """The first of the greatest in each row, [B]: `argmax`. On CPUs that takes several times as long as the vectorised
    `amax`, and so is asked only which run of logits holds the greatest, and where in it."""
    V = logits_BV.shape[-1]
    if logits_BV.device.type != "cpu" or V < _RUN:
        return logits_BV.argmax(-1)
    whole = V // _RUN * _RUN
    greatest = logits_BV[:, :whole].unflatten(-1, (-1, _RUN)).amax(-1)
    if whole < V:
        greatest = torch.cat((greatest, logits_BV[:, whole:].amax(-1, keepdim=True)), -1)
    # The last run is as long as the others: what it begins with is less than its greatest, or would have come first.
    start = (greatest.argmax(-1, keepdim=True) * _RUN).clamp(max=V - _RUN)
    run = logits_BV.gather(1, start + torch.arange(_RUN))
    return start[:, 0] + run.argmax(-1)


def drawn(shares_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The id [B] at which the summed probabilities of a row reach its number in (0, 1]: a draw where that is one."""
    # Summed in float32, the tail of a large vocabulary would round away.
    held = shares_BV.cumsum(-1, dtype=torch.float64)
    at_B1 = torch.searchsorted(held, uniform_B[:, None] * held[:, -1:])
    # Where nothing can be drawn, what is drawn counts for nothing, but has to be an id.
    return at_B1[:, 0].clamp(max=held.shape[-1] - 1)


def distribution(logits_BV: Tensor, settings: Settings) -> Tensor:
    """Probabilities [B, V] after temperature, top-k, top-p, min-p and typical-p, in that order."""
    shares, ids = kept(logits_BV, settings)
    return shares if ids is None else shares.new_zeros(logits_BV.shape).scatter(1, ids, shares)


def kept(logits_BV: Tensor, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """`distribution`; where only a few ids may have any, theirs alone [B, N], with these ids [B, N] in order."""
    ids, logits, V = None, logits_BV, logits_BV.shape[-1]
    if 0 < settings.top_k < V:
        logits, ids = logits.topk(settings.top_k, -1)
    # The likeliest at zero, so that a temperature near nothing makes others unlikely and not infinite.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(settings.temperature, 1e-20)
    shares = logits.softmax(-1)
    if settings.top_p < 1:
        if ids is None:
            ids = _foremost(shares, shares, settings.top_p)
            shares = shares.gather(1, ids)
        # A token stays while those before it hold less than p, so the likeliest always does.
        shares = shares.masked_fill(shares.cumsum(-1) - shares >= settings.top_p, 0.0)
    if settings.min_p > 0:
        shares = shares * (shares >= settings.min_p * shares.amax(-1, keepdim=True))
    if ids is not None:
        shares, ids = _in_order(shares, ids, V)
    shares = shares / shares.sum(-1, keepdim=True)
    if settings.typical_p < 1:
        shares = typical(shares, settings.typical_p)
        shares = shares / shares.sum(-1, keepdim=True)
    return shares, ids


def _in_order(shares_BN: Tensor, ids_BN: Tensor, V: int) -> tuple[Tensor, Tensor | None]:
    """By ids, so that a draw does not turn on which of two comes first that are equally likely, or nearly so."""
    if ids_BN.shape[-1] == V:
        return torch.zeros_like(shares_BN).scatter(1, ids_BN, shares_BN), None
    ids_BN, order = ids_BN.sort(-1)
    return shares_BN.gather(1, order), ids_BN


def _foremost(worth_BV: Tensor, shares_BV: Tensor, p: float) -> Tensor:
    """The ids [B, N] of greatest worth in order, as many as hold p at least: all, unless far fewer are found to do."""
    if worth_BV.device.type == "cpu" and worth_BV.shape[-1] > _FOREMOST:
        ids = worth_BV.topk(_FOREMOST).indices
        if bool((shares_BV.gather(1, ids).sum(-1) >= p).all()):
            return ids
    return worth_BV.argsort(-1, descending=True)


def typical(shares_BV: Tensor, p: float) -> Tensor:
    """Of probabilities [B, V] the fewest that together hold p, those first whose surprise -log q is nearest to the
    entropy; others become 0 (Meister et al. 2023, "Locally Typical Sampling")."""
    entropy = torch.special.entr(shares_BV).sum(-1, keepdim=True)
    distance = (-shares_BV.log() - entropy).abs()
    order = _foremost(-distance, shares_BV, p)
    # The first that reaches p is the last that stays, with those as near as it is.
    before = shares_BV.gather(1, order).cumsum(-1) < p
    last = before.sum(-1, keepdim=True).clamp(max=order.shape[-1] - 1)
    return shares_BV.masked_fill(distance > distance.gather(1, order.gather(1, last)), 0.0)
