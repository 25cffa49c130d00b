"""What a person sees of a run: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24
#: Seconds between refreshes of the live display, and between plain lines.
LIVE_EVERY, PLAIN_EVERY = 0.25, 15.0
#: The rate shown is that of the last so many steps.
RATE_STEPS = 20


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Values as a line of little bars, means of equal stretches where there are more values than `width`."""
    count = min(width, len(values))
    stretches = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(stretch) / len(stretch) for stretch in stretches]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((mean - low) * scale)] for mean in means)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display:
    """Notes, long tasks and steps, on stderr; nothing at all if not `shown`."""

    def __init__(self, shown: bool = True, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=not shown, highlight=False)
        self.is_live = shown and self.console.is_terminal

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(Text(text))

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for a task of `total` bytes; gives the function to call with each number of bytes done."""
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        if not self.is_live:
            self.note(f"{description} ...")
        with Progress(*columns, console=self.console, transient=True, disable=not self.is_live) as progress:
            task = progress.add_task(description, total=total)
            yield lambda done: progress.advance(task, done)

    @contextmanager
    def steps(self, begin: int, steps: int) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Show steps `begin` to `steps`; gives the function to call with the metrics row of each."""
        view = StepsView(begin, steps)
        if not self.is_live:
            yield self._plain(view)
            return
        with Live(view, console=self.console, auto_refresh=False) as live:
            yield self._refreshing(view, live)
            live.refresh()

    def _refreshing(self, view: StepsView, live: Live) -> Callable[[dict[str, Any]], None]:
        shown = 0.0

        def show(row: dict[str, Any]) -> None:
            nonlocal shown
            view.add(row)
            if (now := time.monotonic()) - shown >= LIVE_EVERY:
                live.refresh()
                shown = now

        return show

    def _plain(self, view: StepsView) -> Callable[[dict[str, Any]], None]:
        shown = float("-inf")

        def show(row: dict[str, Any]) -> None:
            nonlocal shown
            view.add(row)
            now = time.monotonic()
            if now - shown >= PLAIN_EVERY or "validation_loss" in row or row["step"] == view.steps:
                self.note("  ".join(view.facts().values()))
                shown = now

        return show


class StepsView:
    """What is known of the steps so far, as rich draws it."""

    def __init__(self, begin: int, steps: int) -> None:
        self.begin, self.steps, self.step = begin, steps, begin
        self.losses: list[float] = []
        self.validation: str | None = None
        self.began = time.monotonic()
        self.marks: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS)

    def add(self, row: dict[str, Any]) -> None:
        """Take in the metrics row of a step."""
        self.step = row["step"]
        if row["loss"] is not None:
            self.losses.append(row["loss"])
        if "validation_loss" in row:
            bits = row.get("validation_bits_per_byte")
            self.validation = f"{row['validation_loss']:.3f}" if bits is None else f"{bits:.3f} bits/byte"
        self.marks.append((time.monotonic(), row["tokens"]))

    def facts(self) -> dict[str, str]:
        """The numbers that there are so far, each with what it is."""
        facts = {"step": f"step {self.step:,}/{self.steps:,}"}
        if self.losses:
            facts["loss"] = f"loss {self.losses[-1]:.3f}"
        if self.validation is not None:
            facts["validation"] = f"validation {self.validation}"
        if len(self.marks) > 1:
            (first, tokens), (last, more_tokens) = self.marks[0], self.marks[-1]
            facts["rate"] = f"{(more_tokens - tokens) / max(last - first, 1e-9):,.0f} tokens/s"
        if self.step > self.begin:
            each = (time.monotonic() - self.began) / (self.step - self.begin)
            facts["left"] = f"{clock(each * (self.steps - self.step))} left"
        return facts

    def __rich__(self) -> Table:
        facts = self.facts()
        lines = Table.grid(padding=(0, 2))
        lines.add_row(ProgressBar(self.steps, self.step, SPARK_WIDTH), _some(facts, "step", "left"))
        lines.add_row(Text(sparkline(self.losses), style="cyan"), _some(facts, "loss", "validation", "rate"))
        return lines


def _some(facts: dict[str, str], *names: str) -> Text:
    return Text("  ".join(facts[name] for name in names if name in facts), no_wrap=True)
