"""Two or more ways of doing one work, in turn, in one process: ratios with their spread, never lone times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Seconds of each round, by contestant."""

    seconds: dict[str, list[float]]

    def ratio(self, ours: str, theirs: str) -> tuple[float, float, float]:
        """How many times as fast `ours` is: the median of the rounds' ratios, and the lowest and highest."""
        ratios = [b / a for a, b in zip(self.seconds[ours], self.seconds[theirs], strict=True)]
        return statistics.median(ratios), min(ratios), max(ratios)

    def median(self, name: str) -> float:
        """The median of a contestant's seconds."""
        return statistics.median(self.seconds[name])


def compare(works: dict[str, Callable[[], object]], rounds: int = 7, warmups: int = 2) -> Comparison:
    """Run every work once a round, the order turned each time, after `warmups` rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for round_ in range(-warmups, rounds):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            works[name]()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return Comparison(seconds)
