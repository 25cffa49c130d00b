"""What adds to the scores of all heads, cut to the heads of one rank."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from anyformer.parts.kernels import Scores
from anyformer.parts.masks import Bias


class HeadsBias(Bias):
    """The bias of `count` heads of another, beginning at `first`."""

    def __init__(self, whole: Bias, first: int, count: int) -> None:
        self.whole, self.first, self.count = whole, first, count

    @property
    def heads(self) -> int:
        return self.count

    def rule(self, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.whole.rule(head + self.first, q, k)


class HeadsOf:
    """Cuts scores to the heads of rank `rank` of `ranks`."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        # One object for each bias, so that it is laid out once a forward.
        self._cut: dict[Bias, HeadsBias] = {}

    def __call__(self, scores: Scores) -> Scores:
        bias, sinks = scores.bias, scores.sinks
        if bias is not None:
            if bias not in self._cut:
                count = bias.heads // self.ranks
                self._cut[bias] = HeadsBias(bias, self.rank * count, count)
            bias = self._cut[bias]
        if sinks is not None:
            sinks = sinks.unflatten(0, (self.ranks, -1))[self.rank]
        return replace(scores, bias=bias, sinks=sinks)
