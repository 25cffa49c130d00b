"""OUT/report.html: a comparison, or a sweep, on one page that stands for itself, drawn as a run's own report is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anyformer import disk
from anyformer.comparing.results import Comparison, Row, Sweep, SweptRun, mean_curve
from anyformer.laws.fitting import central
from anyformer.laws.isoflop import FEWEST_RUNS
from anyformer.laws.plot import svg
from anyformer.toml import to_toml
from anyformer.training.watching.charts import Chart, Curve, chart
from anyformer.training.watching.report import templates

#: Hues of lines, the base's first; after these they come again, dashed.
HUES = (215, 24, 152, 280, 345, 48, 188, 95)
#: What a comparison measures, as people say it.
MEASURES = {"loss": "loss, nats a target", "bits_per_byte": "bits per byte"}


def write_report(comparison: Comparison) -> Path:
    """Write `report.html` into the comparison's directory, and give its path."""
    path = comparison.directory / "report.html"
    page = templates("anyformer.comparing").get_template("comparison.html").render(facts(comparison))
    disk.write(path, page.encode("utf-8", "replace"))
    return path


def write_sweep_report(sweep: Sweep) -> Path:
    """Write `report.html` into the sweep's directory, and give its path."""
    path = sweep.directory / "report.html"
    asked = sweep.asked
    page = templates("anyformer.comparing").get_template("sweep.html")
    drawn = {
        "name": sweep.directory.resolve().name,
        "result": sweep_result(sweep),
        "isoflop": svg(sweep.runs, sweep.curves),
        "law": None if sweep.law is None else svg(sweep.runs, sweep.curves, sweep.law),
        "columns": SWEEP_COLUMNS,
        "rows": [sweep_cells(each) for each in sweep.swept],
        "notes": sweep.notes,
        "recipe": to_toml({key: value for key, value in asked["base"].items() if key != "seed"}),
    }
    disk.write(path, page.render(drawn).encode("utf-8", "replace"))
    return path


#: The figures of a run of a sweep, in the order of `sweep_cells`.
SWEEP_COLUMNS = ("budget", "parameters", "layers", "wide", "tokens", "tokens/parameter", "FLOPs counted", "loss")


def sweep_cells(each: SweptRun) -> list[str]:
    """A run's figures as people read them."""
    return [
        f"{each.budget:.3g}",
        f"{each.parameters:,}",
        f"{each.depth}",
        f"{each.dim}",
        f"{each.run.tokens:,}",
        f"{each.run.tokens / each.parameters:,.1f}",
        f"{each.flops:.3g}",
        "diverged" if each.loss is None else f"{each.loss:.4f}",
    ]


def sweep_result(sweep: Sweep) -> str:
    """What came of it, in a sentence or two."""
    curves = sweep.curves
    best = "; ".join(
        f"{each.flops:.3g} FLOPs: {each.best:,.0f} parameters on {each.flops / 6 / each.best:,.0f} tokens"
        for each in curves.parabolas
    )
    if not best:
        return f"No budget has a best size between its sizes: a curve takes {FEWEST_RUNS}, some on either side of it."
    if curves.exponent is None:
        return f"Best for {best}. An exponent takes two budgets with a best size between theirs."
    low, high = central(curves.samples)
    return f"Best for {best}. N grows as C^{curves.exponent:.2f} ({low:.2f} to {high:.2f}, 80%)."


def facts(comparison: Comparison) -> dict[str, Any]:
    """Everything that the page says, by the names of its template."""
    asked = comparison.asked
    adjusted = any(row.adjusted for row in comparison.rows)
    return {
        "name": comparison.directory.resolve().name,
        "measure": MEASURES[comparison.measure],
        "confidence": comparison.confidence,
        "result": result(comparison),
        "rows": [[row.name, *cells(row), row.verdict, *[row.adjusted] * adjusted] for row in comparison.rows],
        "columns": ["", *COLUMNS, "verdict", *["adjusted"] * adjusted],
        "words": len(COLUMNS) + 2,
        "charts": [drawn for drawn in charts(comparison) if drawn is not None],
        "over": comparison.over.removesuffix("s"),
        "hues": HUES,
        "lines": len(comparison.rows),
        "notes": comparison.notes,
        "question": {
            "varied": "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in asked["vary"].items()),
            "held equal": asked["equal"] or "what the recipe says",
            "seeds": f"{asked['seeds']}, from {asked['base']['seed']} on",
        },
        "recipe": to_toml({key: value for key, value in asked["base"].items() if key != "seed"}),
    }


#: The figures of a row, in the order of `cells`.
COLUMNS = ("mean", "spread", "less base", "interval", "parameters", "FLOPs a token", "tokens/s")


def cells(row: Row) -> list[str]:
    """A row's figures as people read them; empty where there are none."""

    def shown(value: float | None, style: str) -> str:
        return "" if value is None else format(value, style)

    difference, sample = row.difference, row.sample
    interval = difference is not None and difference.low is not None
    return [
        shown(sample and sample.mean, ".4f"),
        shown(sample and sample.spread, ".4f"),
        shown(difference and difference.mean, "+.4f"),
        f"{difference.low:+.4f} to {difference.high:+.4f}" if difference and interval else "",
        f"{row.parameters:,}",
        f"{row.flops_per_token:,}",
        shown(row.tokens_per_second, ",.0f"),
    ]


def result(comparison: Comparison) -> str:
    """What came of it, in one sentence."""
    told: dict[str, list[str]] = {"Better than the base": [], "Worse": [], "Not told apart from it": []}
    for row in comparison.rows[1:]:
        difference = row.difference
        if difference is None or difference.larger_than_noise is None:
            return "These runs say nothing about the noise; the table says why."
        better, worse, neither = told.values()
        (neither if not difference.larger_than_noise else better if difference.mean < 0 else worse).append(row.name)
    return "; ".join(f"{what}: {', '.join(names)}" for what, names in told.items() if names) + "."


def charts(comparison: Comparison) -> Iterator[Chart | None]:
    """The loss on held-out text and while training: the mean of the seeds, and a band from lowest to highest."""
    yield lines(comparison.rows, "Loss on held-out text", lambda row: row.curves)
    yield lines(comparison.rows, "Loss while training, smoothed", lambda row: [run.training for run in row.runs])


def lines(rows: Sequence[Row], title: str, curves: Callable[[Row], Sequence[Curve]]) -> Chart | None:
    """A chart of rows, each with its band and its mean in a colour of its own."""
    means = [(row.name, mean_curve(curves(row))) for row in rows]
    end = max((float(curve.x[-1]) for _, curve in means if len(curve.x)), default=0.0)
    drawn: list[tuple[str, str | None, Curve]] = []
    for name, curve in means:
        drawn += [("raw", None, curve), ("smooth", name, Curve(curve.x, curve.mean, curve.mean, curve.mean))]
    found = chart(title, drawn, (0.0, end))
    if found is None:
        return None
    numbers = [number for number, (_, curve) in enumerate(means) if len(curve.x) for _ in range(2)]
    coloured = (replace(line, style=f"{line.style} v{number}") for line, number in zip(found.lines, numbers))
    return replace(found, lines=tuple(coloured))
