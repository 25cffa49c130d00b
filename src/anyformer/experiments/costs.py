"""What experiments of cost share: seconds taken in turn, bytes held at most, and the power that a cost grows with."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from math import exp, log, sqrt
from multiprocessing import get_context
from statistics import median
from typing import TypeVar

import torch

from anyformer import machine
from anyformer.comparing.statistics import CONFIDENCE, student
from anyformer.errors import ExperimentError

#: How often a way is taken to see what it holds.
TRIES = 3
#: Of glibc's malloc.h.
_MMAP_THRESHOLD = -3

Way = TypeVar("Way", bound=Hashable)

#: How far from the claimed power a measured one may be: so near, it is nearer than to any other half power.
TOLERANCE = 0.25


@dataclass(frozen=True)
class Growth:
    """cost = factor · size^power, with the interval that holds the power as often as `CONFIDENCE` says."""

    power: float
    low: float
    high: float
    factor: float

    def is_about(self, claimed: float) -> bool | None:
        """Whether it grows with the claimed power: yes or no where the whole interval says so, else None."""
        if claimed - TOLERANCE <= self.low and self.high <= claimed + TOLERANCE:
            return True
        return False if self.high < claimed - TOLERANCE or self.low > claimed + TOLERANCE else None

    def is_at_most(self, claimed: float) -> bool | None:
        """Whether it grows with no higher power than the claimed one."""
        if self.high <= claimed + TOLERANCE:
            return True
        return False if self.low > claimed + TOLERANCE else None

    def at(self, size: float) -> float:
        """The cost that it gives for a size."""
        return self.factor * size**self.power

    def __str__(self) -> str:
        return f"{self.power:.2f} ({self.low:.2f} to {self.high:.2f})"


def growth(sizes: Sequence[float], costs: Sequence[float]) -> Growth:
    """The line of least squares through the logarithms; its slope's interval is Student's, from what the points are
    off it: noise, and whatever of the cost is no power of the size. Takes three sizes or more."""
    xs, ys = [log(size) for size in sizes], [log(cost) for cost in costs]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    spread = sum((x - x_mean) ** 2 for x in xs)
    power = sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread
    at_one = y_mean - power * x_mean
    off = sum((y - at_one - power * x) ** 2 for x, y in zip(xs, ys, strict=True))
    freedom = len(xs) - 2
    reach = student(CONFIDENCE, freedom) * sqrt(off / freedom / spread)
    return Growth(power, power - reach, power + reach, exp(at_one))


def seconds(ways: Mapping[Way, Callable[[], object]], rounds: int) -> dict[Way, float]:
    """The median seconds of each way. In every round each is taken once, in turn, so that what disturbs the machine
    for a while disturbs all alike; the first round is not counted."""
    taken: dict[Way, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(time.perf_counter() - began)
    return {name: median(times[1:]) for name, times in taken.items()}


def most_bytes(makers: Sequence[Callable[[], Callable[[], object]]]) -> list[int]:
    """How much more memory than before a process holds at most while it takes each way, in bytes, as the system counts
    it: what kernels hold inside is in it too. A maker makes a way, outside of what is counted; it has to be picklable,
    because this happens in a process that has freed nothing yet: memory that lies between is held by nobody and counts.

    Raises `ExperimentError` where it cannot be measured."""
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"):
        raise ExperimentError("the memory that a call takes can only be measured on Linux with glibc; run it there")
    threads = (torch.get_num_threads(),)
    with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as process:
        return list(process.map(_most_bytes, makers))


def _most_bytes(make: Callable[[], Callable[[], object]]) -> int:
    """The least of a few tries: whatever else happens to be held comes on top."""
    library, cpu = ctypes.CDLL(None), torch.device("cpu")
    # Large blocks in pages of their own: counted while they are held, and given back when they are freed.
    library.mallopt(_MMAP_THRESHOLD, 1 << 17)
    way, held = make(), []
    for _ in range(TRIES):
        gc.collect()
        library.malloc_trim(0)
        machine.begin_peak(cpu)
        before = machine.peak(cpu)
        way()
        most = machine.peak(cpu)
        assert before is not None and most is not None
        held.append(most - before)
    return min(held)
