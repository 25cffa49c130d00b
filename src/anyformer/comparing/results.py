"""What runs came to, read off their directories: losses, curves, speed; and variants beside the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.comparing.statistics import CONFIDENCE, Difference, Sample, difference, sample
from anyformer.laws import FittedLaw, IsoFlop, Runs
from anyformer.laws.fitting import central
from anyformer.training.watching.charts import Curve
from anyformer.training.watching.report import History, read_history


@dataclass(frozen=True)
class Run:
    """One run, finished or diverged.

    - `measured`: the last of what the objective measures on held-out text: `loss` (nats a target), `bits_per_byte`,
      `accuracy`. Empty of a run that diverged.
    - `held_out`, `training`: its loss on held-out text and while training.
    """

    directory: Path
    seed: int
    steps: int
    tokens: int
    measured: Mapping[str, float]
    tokens_per_second: float | None
    held_out: Curve
    training: Curve

    @property
    def is_whole(self) -> bool:
        return "loss" in self.measured

    def to_data(self) -> dict[str, Any]:
        """This run as plain data, its curves as lists."""
        return {
            "directory": str(self.directory),
            "seed": self.seed,
            "steps": self.steps,
            "tokens": self.tokens,
            **self.measured,
            "tokens_per_second": self.tokens_per_second,
            "curve": {"x": self.held_out.x.tolist(), "loss": self.held_out.mean.tolist()},
        }


def read_run(directory: Path, seed: int, over: str = "tokens") -> Run:
    """A run, from its directory; its curves over `tokens`, or over `seconds`."""
    history = read_history(directory / "metrics.jsonl")
    across = history.elapsed if over == "seconds" else history.tokens
    rates = history.rates()[1]
    last = {name: values[-1] for name, (_, values) in history.validation.items()} if _is_whole(history) else {}
    steps, losses = history.validation.get("loss", ([], []))
    smooth = Curve.of(across, history.loss).smoothed() if np.isfinite(history.loss).any() else Curve.of([], [])
    return Run(
        directory=directory,
        seed=seed,
        steps=int(history.step[-1]) if len(history.step) else 0,
        tokens=int(history.tokens[-1]) if len(history.tokens) else 0,
        measured={name: value for name, value in last.items() if isfinite(value)},
        tokens_per_second=float(np.median(rates)) if len(rates) else None,
        held_out=Curve.of(across[[int(step) - 1 for step in steps]], losses),
        training=smooth,
    )


def _is_whole(history: History) -> bool:
    """Whether the last step ended in a measurement: a run that diverged never came to it."""
    steps, _ = history.validation.get("loss", ([], []))
    return bool(steps) and steps[-1] == history.step[-1]


@dataclass(frozen=True)
class Row:
    """A variant over its seeds.

    - `settings`: what it varies. `adjusted`: in words, what was adjusted to hold it equal.
    - `parameters`; `flops_per_token`: to train on one token, forward and backward, as planned.
    - `losses`: by seed, of what the comparison measures; None of a run that diverged.
    - `sample`: their mean and spread. `difference`: theirs less the base's, seed by seed; both None where a run
      diverged, the latter of the base too.
    """

    name: str
    settings: Mapping[str, Any]
    parameters: int
    flops_per_token: int
    adjusted: str
    runs: tuple[Run, ...]
    losses: tuple[float | None, ...]
    sample: Sample | None = None
    difference: Difference | None = None

    @property
    def curves(self) -> tuple[Curve, ...]:
        """The loss on held-out text of each seed, over tokens or seconds."""
        return tuple(run.held_out for run in self.runs)

    @property
    def tokens_per_second(self) -> float | None:
        """The median of its runs."""
        rates = [run.tokens_per_second for run in self.runs if run.tokens_per_second is not None]
        return float(np.median(rates)) if rates else None

    @property
    def verdict(self) -> str:
        """Whether it differs from the base by more than the noise, in words."""
        diverged = [run.seed for run in self.runs if not run.is_whole]
        if diverged:
            return f"diverged at {_seeds(diverged)}"
        if self.difference is None:
            return ""
        if self.difference.low == self.difference.high == 0:
            return "the same to the last digit: it changes nothing here"
        return self.difference.in_words

    def to_data(self) -> dict[str, Any]:
        """This row as plain data."""
        return {
            "name": self.name,
            "settings": dict(self.settings),
            "parameters": self.parameters,
            "flops_per_token": self.flops_per_token,
            "adjusted": self.adjusted,
            "losses": list(self.losses),
            "mean": self.sample and self.sample.mean,
            "spread": self.sample and self.sample.spread,
            "difference": self.difference and vars(self.difference),
            "verdict": self.verdict,
            "tokens_per_second": self.tokens_per_second,
            "runs": [run.to_data() for run in self.runs],
        }


@dataclass(frozen=True)
class Comparison:
    """Variants side by side, the base first.

    `measure`: `loss` (nats a target of held-out text) or `bits_per_byte`. `asked`: the question. `over`: what curves
    run over, `tokens` or `seconds`. `notes`: what to bear in mind, a sentence each.
    """

    directory: Path
    asked: Mapping[str, Any]
    confidence: float
    measure: str
    over: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Row:
        """The row of a variant, by its name."""
        return next(row for row in self.rows if row.name == name)

    def to_data(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "asked": dict(self.asked),
            "confidence": self.confidence,
            "measure": self.measure,
            "over": self.over,
            "rows": [row.to_data() for row in self.rows],
            "notes": list(self.notes),
        }


def with_statistics(rows: Sequence[Row], confidence: float = CONFIDENCE) -> tuple[Row, ...]:
    """Rows, the base first, with mean, spread and the paired difference from the base."""
    base = rows[0]
    return (_with_statistics(base, None, confidence), *(_with_statistics(row, base, confidence) for row in rows[1:]))


def _with_statistics(row: Row, base: Row | None, confidence: float) -> Row:
    ours = [loss for loss in row.losses if loss is not None]
    theirs = [loss for loss in base.losses if loss is not None] if base is not None else []
    is_whole = len(ours) == len(row.losses)
    return Row(
        **{
            **vars(row),
            "sample": sample(ours) if is_whole else None,
            "difference": difference(ours, theirs, confidence) if is_whole and len(theirs) == len(ours) else None,
        }
    )


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep: what it was to spend (6·N·D), its size, and the FLOPs that it took, counted exactly."""

    budget: float
    parameters: int
    flops: int
    depth: int
    dim: int
    run: Run

    @property
    def loss(self) -> float | None:
        """Nats a target of held-out text; None of a run that diverged."""
        return self.run.measured.get("loss")


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, the smallest budget first; as points; their IsoFLOP curves (empty where sizes or budgets are
    too few, or have no best size between them); and a law, where they are enough for one."""

    directory: Path
    asked: Mapping[str, Any]
    swept: tuple[SweptRun, ...]
    runs: Runs
    curves: IsoFlop
    law: FittedLaw | None
    notes: tuple[str, ...] = field(default=())

    def to_data(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "asked": dict(self.asked),
            "runs": [{**vars(each), "loss": each.loss, "run": each.run.to_data()} for each in self.swept],
            "isoflop": {
                "exponent": self.curves.exponent,
                "interval": list(central(self.curves.samples)) if len(self.curves.samples) else None,
                "best": [{"flops": each.flops, "parameters": each.best} for each in self.curves.parabolas],
            },
            "law": None if self.law is None else vars(self.law.law) | {"exponent": self.law.law.exponent},
            "notes": list(self.notes),
        }


def mean_curve(curves: Iterable[Curve]) -> Curve:
    """The mean of curves, and their lowest and highest, as far as all of them go."""
    curves = [curve for curve in curves if len(curve.x)]
    if not curves:
        return Curve.of([], [])
    x = np.unique(np.concatenate([curve.x for curve in curves]))
    begin, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    x = x[(x >= begin) & (x <= end)] if begin <= end else curves[0].x[-1:]
    values = np.array([np.interp(x, curve.x, curve.mean) for curve in curves])
    return Curve(x, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
