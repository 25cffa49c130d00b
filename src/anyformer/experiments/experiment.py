"""What an experiment is: a claim of the field, what would refute it, and how it is put to the test.

    measure(lab) -> numbers -> judge(numbers) -> verdict
                            -> draw(numbers, figure)

A verdict and a picture are functions of the numbers alone, which are plain data: whoever doubts a verdict can judge the
same numbers again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: What an experiment measured, as JSON has it: keys are texts.
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of a claim, and why: one sentence with the figures that decide."""

    word: Literal["holds", "does not hold at this scale", "unclear"]
    because: str


def holds(because: str) -> Verdict:
    """The numbers are as the claim has them."""
    return Verdict("holds", because)


def does_not_hold(because: str) -> Verdict:
    """What would refute the claim is what was measured."""
    return Verdict("does not hold at this scale", because)


def unclear(because: str) -> Verdict:
    """The numbers do not tell, or tell both: what differs is within the noise."""
    return Verdict("unclear", because)


@dataclass(frozen=True)
class Lab:
    """What an experiment gets to work with.

    `scale` multiplies the work: 1 is the default, of a few minutes on two cores; a tenth only shows that it runs.
    `data` and `model` are what the user named in place of the experiment's own. `directory` is there for its files and
    is gone afterwards.
    """

    directory: Path
    scale: float = 1.0
    seed: int = 0
    data: Path | None = None
    model: str | None = None
    say: Callable[[str], None] = field(default=lambda text: None)

    def times(self, count: int, least: int = 1) -> int:
        """A number of steps, samples or repetitions, at this scale."""
        return max(least, round(count * self.scale))


@dataclass(frozen=True)
class Experiment:
    """A claim of the field, on trial.

    `takes` says what `--data` or `--model` may name in this experiment, and what it takes where nothing is named.
    """

    name: str
    claim: str
    source: str
    refuted_by: str
    measure: Callable[[Lab], Numbers]
    judge: Callable[[Numbers], Verdict]
    draw: Callable[[Numbers, Figure], None]
    takes: dict[Literal["data", "model"], str] = field(default_factory=dict)
