"""Activation patching: which activation of one prompt, put into another, brings back what the model said of the first.

Two prompts of one length differ in what matters (a name, a number). The second is run again and again, each time with
one activation of the first: where that restores the first's answer, the difference passes there (Meng et al. 2022,
https://arxiv.org/abs/2202.05262, section 2.1; Wang et al. 2022, https://arxiv.org/abs/2211.00593, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inspection.interventions import Edit, time_of
from anyformer.inspection.tracing import sites, trace
from anyformer.model import Transformer

#: From logits [B, T, V] to a number a row, [B].
Metric = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Effects:
    """What patching did, site by site (rows), and position by position or head by head (columns).

    sites      the names of the sites, one a layer as a rule
    clean      the metric of the first prompt
    corrupt    and of the second, unpatched
    patched    [sites, columns] float32: of the second, patched; NaN where a site has no such column
    """

    sites: list[str]
    clean: float
    corrupt: float
    patched: Tensor

    @property
    def restored(self) -> Tensor:
        """How much of the difference came back, [sites, columns]: 0 nothing, 1 all of it."""
        return (self.patched - self.corrupt) / (self.clean - self.corrupt)


def logit_difference(answer: int, other: int, position: int = -1) -> Metric:
    """How much larger the logit of one token is than that of another, at a position."""
    return lambda logits: logits[:, position, answer] - logits[:, position, other]


def patching(
    model: Transformer,
    clean: Tensor | Mapping[str, Tensor],
    corrupt: Tensor | Mapping[str, Tensor],
    metric: Metric,
    pattern: str = "**.layers.*.residual_before",
    batch_size: int = 32,
) -> Effects:
    """The table of effects of patching each position, or, where the pattern names attention's heads
    (`decoder.layers.*.attention.heads`), each head at all positions.

    Prompts are ids [1, T], or all arguments of the model by name (`{"tokens": ..., "source": ...}`). Positions are
    patched `batch_size` at a time, a row of the batch each. Raises `InputError` for prompts of different shapes, for
    several rows, for a model without logits, and where the metric cannot tell the prompts apart.
    """
    first, second = _given(clean), _given(corrupt)
    _check_pair(first, second)
    found = sites(model, pattern)
    if len({time_of(site) for site in found}) > 1:
        raise InputError(f"'{pattern}' names sites of heads and of positions; patch those of one kind at a time")
    with torch.no_grad():
        with trace(model, *found) as t:
            value = float(metric(_logits(model, first)))
        before = float(metric(_logits(model, second)))
        if value == before:
            raise InputError(f"the metric is {value:.6g} for both prompts; choose prompts or a metric that differ")
        sizes = [t[site].shape[1] for site in found]
        patched = torch.full((len(found), max(sizes)), torch.nan)
        for row, (site, size) in enumerate(zip(found, sizes)):
            for start in range(0, size, batch_size):
                columns = range(start, min(start + batch_size, size))
                with Edit(model, [site], _each(t[site], columns)):
                    patched[row, start : columns.stop] = metric(_logits(model, second, len(columns))).float().cpu()
    return Effects(found, value, before, patched)


def _each(other: Tensor, columns: range) -> Callable[[str, Tensor], Tensor]:
    """In row i of a batch, position (or head) columns[i] of the other prompt."""

    def change(site: str, value: Tensor) -> Tensor:
        value = value.clone()
        rows, which = torch.arange(len(columns)), torch.tensor(columns)
        value[rows, which] = other[0, which].to(value)
        return value

    return change


def _given(prompt: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {"tokens": prompt} if isinstance(prompt, Tensor) else dict(prompt)


def _check_pair(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    shapes = [{name: list(value.shape) for name, value in given.items()} for given in (first, second)]
    if shapes[0] != shapes[1]:
        raise InputError(f"patching needs two prompts of one shape, these are {shapes[0]} and {shapes[1]}")
    if any(len(value) != 1 for value in first.values()):
        raise InputError(f"patching takes one prompt of either kind, [1, T], not {shapes[0]}")


def _logits(model: Transformer, given: Mapping[str, Any], rows: int = 1) -> Tensor:
    logits = model(**{name: value.expand(rows, *value.shape[1:]) for name, value in given.items()}).logits
    if logits is None:
        raise InputError("this model gives no logits; patching needs a head that does")
    return logits
