"""Runs as points: how large the model was, how many tokens it saw, and the loss it ended with."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.errors import PlanError
from anyformer.planning import count
from anyformer.planning.reading import read_spec

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Runs:
    """Parameters, tokens, and losses in nats a token, float64 [R] each."""

    parameters: np.ndarray
    tokens: np.ndarray
    losses: np.ndarray

    @property
    def flops(self) -> np.ndarray:
        """To train each: 6·N·D."""
        return 6 * self.parameters * self.tokens

    def without_worst(self, number: int) -> Runs:
        """All but those of the highest loss."""
        kept = np.sort(np.argsort(self.losses, kind="stable")[: len(self.losses) - number])
        return Runs(self.parameters[kept], self.tokens[kept], self.losses[kept])


def read_runs(sources: Iterable[str | Path]) -> Runs:
    """Run directories (the last measured loss on held-out text, else the last of training), folders of such, and CSV
    files with the columns `parameters`, `loss` and `tokens` (or `flops`, of which tokens are a sixth over parameters).

    Raises `PlanError` naming what cannot be used.
    """
    points = [point for source in sources for point in _points(Path(source))]
    if not points:
        raise PlanError("there are no runs to fit a law to; name run directories, or CSV files of their results")
    parameters, tokens, losses = np.array(points, np.float64).T
    return Runs(parameters, tokens, losses)


def _points(source: Path) -> list[tuple[float, float, float]]:
    if not source.exists():
        raise PlanError(f"there is no file or directory '{source}' of runs")
    if source.is_file():
        return _of_csv(source)
    if (source / METRICS).is_file():
        return [_of_run(source)]
    # A sweep keeps its runs in a folder of their own.
    folders = (source, source / "runs") if source.is_dir() else ()
    within = sorted(path.parent for folder in folders for path in folder.glob(f"*/{METRICS}"))
    if not within:
        raise PlanError(f"{source} is neither a CSV file nor a run directory nor a folder of those (no {METRICS})")
    return [_of_run(run) for run in within]


def _of_run(run: Path) -> tuple[float, float, float]:
    rows = [_row(line, run, number) for number, line in enumerate((run / METRICS).read_text().splitlines(), 1)]
    key = "validation_loss" if any(row.get("validation_loss") is not None for row in rows) else "loss"
    last = next((row for row in reversed(rows) if row.get(key) is not None), None)
    if last is None:
        raise PlanError(f"{run / METRICS} has no loss in it; leave the run out, or train it first")
    return _checked(count(read_spec(run)), last.get("tokens"), last[key], str(run))


def _row(line: str, run: Path, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise PlanError(f"{run / METRICS} is not JSON in line {number}")
    return row


def _of_csv(path: Path) -> list[tuple[float, float, float]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise PlanError(f"{path} is not text, so it is no CSV file of runs") from None
    table = csv.DictReader(text.splitlines())
    named = list(table.fieldnames or ())
    if not ({"parameters", "loss"} <= {*named} and {*named} & {"tokens", "flops"}):
        raise PlanError(
            f"{path} needs the columns parameters, loss, and tokens or flops; it has {', '.join(named) or 'none'}"
        )
    points = []
    for number, row in enumerate(table, 2):
        where = f"{path}, line {number}"
        parameters, loss, tokens = (_number(row.get(name), name, where) for name in ("parameters", "loss", "tokens"))
        if "tokens" not in named and parameters:
            tokens = _number(row["flops"], "flops", where) / 6 / parameters
        points.append(_checked(parameters, tokens, loss, where))
    return points


def _number(text: str | None, name: str, where: str) -> float:
    try:
        return float(text) if text is not None else 0.0
    except ValueError:
        raise PlanError(f"{where}: {name} is '{text}', which is no number") from None


def _checked(parameters: Any, tokens: Any, loss: Any, where: str) -> tuple[float, float, float]:
    for name, value in (("parameters", parameters), ("tokens", tokens), ("loss", loss)):
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise PlanError(f"{where}: {name} is {value}, and must be above 0")
    return float(parameters), float(tokens), float(loss)
