"""A law as a picture: loss over size at each budget, and the best size over budgets. SVG, by itself or in a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from anyformer import disk
from anyformer.errors import PlanError
from anyformer.laws.fitting import FittedLaw, central
from anyformer.laws.isoflop import IsoFlop
from anyformer.laws.runs import Runs
from anyformer.planning.describe import scaled
from anyformer.planning.scaling import CORRECTED

WIDTH, HEIGHT = 460, 360
LEFT, TOP, RIGHT, BOTTOM = 56, 34, 14, 44
#: Points of a line that bends.
POINTS = 60
#: A legend names no more of many budgets.
NAMED = 4
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:currentColor}.title{font-weight:600}"
    ".grid{stroke:currentColor;opacity:.15}.line{fill:none;stroke-width:1.6}.band{opacity:.18;stroke:none}"
    ".dash{stroke-dasharray:5 4}"
)
#: To be read on light pages and on dark ones.
OURS, THEIRS, POINT = "#1681b0", "#888", "#e0561a"


def check_plot(path: Path) -> None:
    """Raise `PlanError` where no plot can be called so."""
    if path.suffix not in (".svg", ".html"):
        raise PlanError(f"{path}: a plot is an .svg or .html file")


def write_plot(path: Path, runs: Runs, law: FittedLaw, curves: IsoFlop) -> None:
    """Draw a law, and the runs that it was fitted to, into an .svg or .html file."""
    check_plot(path)
    drawn = svg(runs, curves, law)
    page = f"<!doctype html><meta charset=utf-8><title>A scaling law</title>{drawn}\n"
    disk.write(path, (drawn if path.suffix == ".svg" else page).encode())


def svg(runs: Runs, curves: IsoFlop, law: FittedLaw | None = None) -> str:
    """Loss over size; with a law, what it foretells there, and beside it the best size over budgets."""
    panels = [_loss_panel(runs, curves, law)]
    if law is not None:
        panels.append(_size_panel(runs, law, curves))
    inner = "".join(f'<g transform="translate({index * WIDTH} 0)">{panel}</g>' for index, panel in enumerate(panels))
    width = len(panels) * WIDTH
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}">'
        f"<style>{STYLE}</style>{inner}</svg>\n"
    )


def _loss_panel(runs: Runs, curves: IsoFlop, law: FittedLaw | None) -> str:
    """Loss over parameters: runs as points, and for each budget its parabola, or the law's line, with the bottom."""
    paper = Paper(runs.parameters, _without_outliers(runs.losses), log_y=False)
    parts = [paper.frame("loss, by parameters", "parameters")]
    parts += [paper.dot(n, loss, THEIRS, 2.4) for n, loss in zip(runs.parameters, runs.losses)]
    legend = []
    for index, each in enumerate(curves.parabolas):
        colour = _shade(index / max(1, len(curves.parabolas) - 1))
        sizes = np.geomspace(each.parameters.min(), each.parameters.max(), POINTS)
        losses = list(each.loss(sizes)) if law is None else [law.loss(size, each.flops / 6 / size) for size in sizes]
        parts.append(paper.line(sizes, losses, colour))
        parts += [paper.dot(n, loss, colour, 2.4) for n, loss in zip(each.parameters, each.losses)]
        parts.append(paper.dot(each.best, float(each.loss(np.array(each.best))), POINT, 4))
        legend.append((f"{each.flops:.2g} FLOPs: {scaled(each.best, '').strip()}", colour))
    named = [legend[index] for index in np.unique(np.linspace(0, len(legend) - 1, NAMED).astype(int))] if legend else []
    if sum(len(each.losses) for each in curves.parabolas) < len(runs.losses):
        named.append(("runs on no curve", THEIRS))
    # No small model has a low loss, so the lower left is free.
    return "".join(parts) + _legend(named, HEIGHT - BOTTOM - 10 - 17 * len(named))


def _size_panel(runs: Runs, law: FittedLaw, curves: IsoFlop) -> str:
    """The best parameters over FLOPs: the law's with its interval, the curves' bottoms, and the published law's."""
    flops = np.geomspace(runs.flops.min() / 10, runs.flops.max() * 100, POINTS)
    ends = np.array([law.interval(each) for each in flops])
    paper = Paper(flops, ends.ravel())
    ours = [law.parameters(each) for each in flops]
    low, high = law.intervals()["exponent"]
    legend = [(f"this law: C^{law.law.exponent:.3f} ({low:.3f} to {high:.3f})", OURS)]
    parts = [paper.frame("compute-optimal parameters, by FLOPs", "FLOPs"), paper.band(flops, ends, OURS)]
    parts += [paper.line(flops, [CORRECTED.parameters(each) for each in flops], THEIRS, "line dash")]
    parts += [paper.line(flops, ours, OURS)]
    parts += [paper.dot(each.flops, each.best, POINT, 3.6) for each in curves.parabolas]
    if curves.exponent is not None:
        low, high = central(curves.samples)
        legend.append((f"IsoFLOP curves: C^{curves.exponent:.3f} ({low:.3f} to {high:.3f})", POINT))
    legend.append((f"Besiroglu et al. 2024: C^{CORRECTED.exponent:.3f}", THEIRS))
    return "".join(parts) + _legend(legend)


def _legend(entries: Sequence[tuple[str, str]], top: int = TOP) -> str:
    lines = (
        f'<circle cx="{LEFT + 14}" cy="{top + 14 + 17 * index}" r="4" fill="{colour}"/>'
        f'<text x="{LEFT + 24}" y="{top + 18 + 17 * index}">{escape(text)}</text>'
        for index, (text, colour) in enumerate(entries)
    )
    return "".join(lines)


def _shade(share: float) -> str:
    """From blue to red, as budgets grow."""
    return f"hsl({200 + 140 * share:.0f} 60% 52%)"


def _without_outliers(losses: np.ndarray) -> np.ndarray:
    """Without the few that would leave the others no room."""
    return losses[losses <= np.quantile(losses, 0.5) + 2.5 * (np.quantile(losses, 0.9) - np.quantile(losses, 0.5))]


class Paper:
    """Where numbers lie on a panel whose axes hold all of `x` and `y`; both logarithmic unless said otherwise."""

    def __init__(self, x: np.ndarray, y: np.ndarray, *, log_y: bool = True) -> None:
        self.log_y = log_y
        self.x, self.y = (_range(np.log10(x)), _range(np.log10(y) if log_y else y))

    def across(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x
        return LEFT + (np.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def down(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y
        place = (np.log10(value) if self.log_y else value) - low
        return HEIGHT - BOTTOM - place / (high - low) * (HEIGHT - TOP - BOTTOM)

    def frame(self, title: str, below: str) -> str:
        """Title, grid and the numbers on both axes."""
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts = [f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>']
        parts += [f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(below)}</text>']
        for value in _decades(self.x):
            x = self.across(value)
            label = scaled(value, "").strip() if below == "parameters" else f"{value:.0e}".replace("e+", "e")
            parts.append(f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{label}</text>')
        for value in _decades(self.y) if self.log_y else _rounds(self.y):
            y = self.down(value)
            label = scaled(value, "").strip() if self.log_y else f"{value:g}"
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
        return "".join(parts)

    def dot(self, x: float, y: float, colour: str, radius: float) -> str:
        """A point; nothing where it lies outside."""
        down = self.down(y)
        if not TOP - 1 <= down <= HEIGHT - BOTTOM + 1:
            return ""
        return f'<circle cx="{self.across(x):.1f}" cy="{down:.1f}" r="{radius}" fill="{colour}"/>'

    def line(self, x: Sequence[float] | np.ndarray, y: Sequence[float], colour: str, style: str = "line") -> str:
        """A line through points, as far as it lies inside."""
        inside = ((a, self.down(b)) for a, b in zip(x, y) if TOP <= self.down(b) <= HEIGHT - BOTTOM)
        places = "L".join(f"{self.across(a):.1f} {down:.1f}" for a, down in inside)
        if not places:
            return ""
        return f'<path class="{style}" stroke="{colour}" fill="none" d="M{places}"/>'

    def band(self, x: np.ndarray, ends: np.ndarray, colour: str) -> str:
        """What lies between two lines."""
        forth = [f"{self.across(a):.1f} {self.down(b):.1f}" for a, b in zip(x, ends[:, 0])]
        back = [f"{self.across(a):.1f} {self.down(b):.1f}" for a, b in zip(x[::-1], ends[::-1, 1])]
        return f'<path class="band" fill="{colour}" d="M{"L".join(forth + back)}Z"/>'


def _range(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def _decades(ends: tuple[float, float]) -> Iterator[float]:
    """Powers of ten on an axis, of a thousand where they are many; twice and five times them too, where few."""
    powers = range(int(np.floor(ends[0])), int(np.floor(ends[1])) + 1)
    step, factors = (1, (1, 2, 5)) if len(powers) <= 3 else (1, (1,)) if len(powers) <= 8 else (3, (1,))
    ticks = (factor * 10.0**power for power in powers if power % step == 0 for factor in factors)
    yield from (tick for tick in ticks if 10 ** ends[0] <= tick <= 10 ** ends[1])


def _rounds(ends: tuple[float, float]) -> Iterator[float]:
    """About five round numbers on an axis."""
    rough = (ends[1] - ends[0]) / 5
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = int(np.ceil(ends[0] / step))
    yield from (round(index * step, 10) for index in range(first, int(np.floor(ends[1] / step)) + 1))
