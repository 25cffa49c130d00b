"""af.trace: what passes through a model while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from anyformer.errors import InputError
from anyformer.inspection.tracing.sites import matching, sites
from anyformer.inspection.tracing.watching import Watching
from anyformer.model import Transformer


class Trace(Watching):
    """The values of some sites of a model, from the passes that it makes within a `with`:

        with af.trace(model, "decoder.layers.*.attention.weights") as t:
            model(ids)
        t["decoder.layers.3.attention.weights"]                # [B, H, T, S], of the last pass
        t.stack("decoder.layers.*.attention.weights")          # [L, B, H, T, S]
        for site, value in t.items(): ...                      # in the order of the layers

    Every pass of the model within the block counts, also those that `generate` makes: the prompt's, then one a token.
    Of a site, `t[site]` is what passed there last; with `keep="all"`, `t.passes(site)` is the list of all, in order.
    With `reduce`, only what that function of (site, value) gives is kept of a value: weights are large.
    What has passed stays readable after the block. Values are the model's own tensors, with their gradients where those
    are on (`torch.no_grad()` turns them off); change none in place.

    Tracing leaves the model's outputs as they are, to the bit: the same kernels compute them, and attention's weights
    are computed a second time, beside them, from queries and keys. Afterwards, exception or not, the model is as it was
    before. The names of all sites: `t.sites`, those traced; `anyformer.inspection.sites(model)`, all; what they hold:
    `inspection/tracing/sites.py`.
    """

    def __init__(
        self,
        model: Transformer,
        *patterns: str,
        keep: Literal["last", "all"] = "last",
        reduce: Callable[[str, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model)
        if not patterns:
            raise InputError("nothing to trace; name sites, such as 'decoder.layers.*.attention.weights', or '**'")
        if keep not in ("last", "all"):
            raise InputError(f"keep the 'last' pass or 'all', not {keep!r}")
        self.keep, self.reduce = keep, reduce
        self._passed: dict[str, list[Tensor]] = {site: [] for site in sites(model, *patterns)}
        #: The names of the sites that are traced, in the order in which the model passes them.
        self.sites = self._passed.keys()

    def see(self, site: str, value: Tensor) -> Tensor:
        """Keep what passes at a site."""
        passed = self._passed[site]
        if self.keep == "last":
            passed.clear()
        passed.append(value if self.reduce is None else self.reduce(site, value))
        return value

    def __getitem__(self, site: str) -> Tensor:
        """What passed at this site last. Raises `InputError` where it is not traced, or nothing has passed."""
        return self.passes(site)[-1]

    def passes(self, site: str) -> list[Tensor]:
        """What passed at this site, pass by pass: all of it with `keep="all"`, else the last alone."""
        if site not in self._passed:
            matching(list(self.sites), site, "trace")  # says which are near
            raise InputError(f"'{site}' names many sites; ask for one, or use items() or stack() with a pattern")
        if not self._passed[site]:
            raise InputError(f"nothing has passed '{site}' yet; run the model within the trace")
        return list(self._passed[site])

    def items(self, pattern: str = "**") -> Iterator[tuple[str, Tensor]]:
        """The sites that match, in the order in which the model passes them, each with what passed there last."""
        return ((site, self[site]) for site in matching(list(self.sites), pattern, "trace"))

    def stack(self, pattern: str) -> Tensor:
        """What passed last at the sites that match, one behind the other along a new first dimension."""
        found = dict(self.items(pattern))
        if len({value.shape for value in found.values()}) > 1:
            shapes = ", ".join(f"{site} {list(value.shape)}" for site, value in found.items())
            raise InputError(f"'{pattern}' names values of different shapes, which do not stack: {shapes}")
        return torch.stack(list(found.values()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __contains__(self, site: str) -> bool:
        return site in self._passed


def trace(
    model: Transformer,
    *patterns: str,
    keep: Literal["last", "all"] = "last",
    reduce: Callable[[str, Tensor], Tensor] | None = None,
) -> Trace:
    """Look at what passes through a model: see `Trace` for how, and `inspection/tracing/sites.py` for what there is.

    Raises `InputError` for a pattern that matches nothing, for a compiled model, and for one that drops at random.
    """
    return Trace(model, *patterns, keep=keep, reduce=reduce)
