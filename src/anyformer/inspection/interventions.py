"""Changing what passes through a model while it runs: edits, ablations, skipped layers, patches from another prompt.

All are context managers over the sites of `tracing/sites.py`, and may be nested, in one another and in traces; a trace
sees what the model goes on with. Within the block every pass is changed; afterwards, exception or not, the model is as
it was before.

    with edit(model, "decoder.layers.3.feed_forward.hidden", torch.relu): ...
    with ablate(model, "decoder.layers.3.attention", heads=[0, 2]): ...
    with ablate(model, "decoder.layers.*.feed_forward", mean=t): ...        # t: a trace of other inputs
    with skip(model, "decoder.layers.5"): ...
    with patch(model, t, "decoder.layers.3.residual_after", positions=[4]): ...
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inspection.tracing import Trace, sites
from anyformer.inspection.tracing.sites import OF_ATTENTION
from anyformer.inspection.tracing.watching import Watching
from anyformer.model import Transformer

#: What follows from other sites, and from which: changing it would change nothing.
FOLLOWS = {
    "contributions": "change heads or output",
    "shares": "change weights or choices",
}


class Edit(Watching):
    """A change of what passes at some sites: `change(site, value)` gives what the model goes on with."""

    changes = True

    def __init__(self, model: Transformer, found: Sequence[str], change: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(model)
        self.change = change
        self.sites = dict.fromkeys(found).keys()
        for site in found:
            _check_changeable(site)

    def see(self, site: str, value: Tensor) -> Tensor:
        """The changed value, of the same shape and type."""
        changed = self.change(site, value)
        if not isinstance(changed, Tensor) or changed.shape != value.shape:
            found = list(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise InputError(f"what passes '{site}' is {list(value.shape)} and cannot become {found}; keep the shape")
        return changed.to(value.dtype)


def edit(model: Transformer, pattern: str, change: Callable[[Tensor], Tensor]) -> Edit:
    """Let a function of the value change what passes at the sites that a pattern names. The shape stays.

    Raises `InputError` for a pattern that matches nothing, and for sites that only follow from others."""
    return Edit(model, sites(model, pattern), lambda site, value: change(value))


def ablate(model: Transformer, *branches: str, heads: Sequence[int] | None = None, mean: Trace | None = None) -> Edit:
    """Take away what branches (`decoder.layers.3.attention`, `decoder.layers.*.feed_forward`) add to the stream, or
    what some `heads` of attention read: zero stands there, or with `mean` its mean over all passes, rows and positions
    of a trace of the same sites (`….output`, `….heads`).

    Raises `InputError` for branches or heads that the model lacks, and for a trace that lacks their sites."""
    found = sites(model, *(f"{branch}.{'output' if heads is None else 'heads'}" for branch in branches))
    means = {} if mean is None else {site: mean_of(mean, site) for site in found}

    def change(site: str, value: Tensor) -> Tensor:
        instead = means[site].to(value).expand_as(value) if means else torch.zeros_like(value)
        if heads is None:
            return instead
        _check_index("head", heads, value.shape[1], site)
        chosen = torch.tensor(heads, dtype=torch.long, device=value.device)
        return value.index_copy(1, chosen % value.shape[1], instead.index_select(1, chosen % value.shape[1]))

    return Edit(model, found, change)


def skip(model: Transformer, *layers: str) -> Edit:
    """Let the stream pass layers (`decoder.layers.5`) as it came. They still run, so that a cache holds all keys."""
    found = sites(model, *(f"{layer}.residual_{when}" for layer in layers for when in ("before", "after")))
    came: dict[str, Tensor] = {}

    def change(site: str, value: Tensor) -> Tensor:
        layer, _, when = site.rpartition(".")
        if when == "residual_before":
            came[layer] = value
            return value
        return came.pop(layer)

    return Edit(model, found, change)


def patch(
    model: Transformer,
    trace: Trace,
    *patterns: str,
    positions: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Edit:
    """Put what passed last in a trace of another prompt in the place of what passes here: everywhere, or at some
    `positions` in time, of some `heads` (Vig et al. 2020, section 3; Meng et al. 2022, section 2.1).

    Raises `InputError` for sites that the trace lacks, and for prompts of different shapes."""
    found = sites(model, *patterns)
    values = {site: trace[site] for site in found}

    def change(site: str, value: Tensor) -> Tensor:
        other = values[site].to(value)
        if other.shape != value.shape:
            raise InputError(
                f"what passed '{site}' in the trace is {list(other.shape)}, here it is {list(value.shape)}; patch "
                f"between prompts of one length, and as many rows"
            )
        return torch.where(where(site, value, positions, heads), other, value)

    return Edit(model, found, change)


def where(site: str, value: Tensor, positions: Sequence[int] | None, heads: Sequence[int] | None) -> Tensor:
    """bool, in a shape that broadcasts with a site's value: these positions of these heads; None stands for all."""
    time = time_of(site)
    chosen = torch.ones([1] * value.dim(), dtype=torch.bool, device=value.device)
    for name, which, dim in (("position", positions, time), ("head", heads, 1)):
        if which is None:
            continue
        if name == "head" and time == 1:
            raise InputError(f"'{site}' has no heads; leave heads out, or patch an attention's heads")
        _check_index(name, which, value.shape[dim], site)
        of = torch.zeros(value.shape[dim], dtype=torch.bool, device=value.device)
        of[torch.tensor(which, dtype=torch.long, device=value.device)] = True
        chosen = chosen & of.view([-1 if d == dim else 1 for d in range(value.dim())])
    return chosen


def time_of(site: str) -> int:
    """Which dimension of a site's value is time: after the heads, where there are any."""
    branch, _, what = site.rpartition(".")
    return 2 if what in OF_ATTENTION and branch.endswith("attention") else 1


def mean_of(trace: Trace, site: str) -> Tensor:
    """The mean over all passes, rows and positions of what passed at a site, to broadcast over them."""
    time = time_of(site)
    flat = [passed.transpose(1, time).flatten(0, 1) for passed in trace.passes(site)]
    mean = torch.cat(flat).mean(0)
    return mean[None, :, None] if time == 2 else mean[None, None]


def _check_changeable(site: str) -> None:
    what = site.rpartition(".")[2]
    if what in FOLLOWS:
        raise InputError(f"'{site}' only follows from other sites; {FOLLOWS[what]} instead")


def _check_index(name: str, which: Sequence[int], size: int, site: str) -> None:
    for index in which:
        if not -size <= index < size:
            raise InputError(f"'{site}' has no {name} {index}; its {name}s go from 0 to {size - 1}")
