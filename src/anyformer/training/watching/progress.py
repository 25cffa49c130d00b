"""What a person sees of a run: a live panel on a terminal, plain lines that line up elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from anyformer.training.watching.curve import Curves, Means

#: Seconds between refreshes of the live display, and between plain lines.
LIVE_EVERY, PLAIN_EVERY = 0.25, 15.0
#: Seconds into a long task after which a plain line says how long it will take.
PLAIN_FIRST = 5.0
#: The rate shown is that of the last so many steps.
RATE_STEPS = 20
#: The panel is no wider than this, however wide the terminal is.
WIDEST = 100
TRAINING, VALIDATION = "cyan", "magenta"
STYLES = {"loss": f"bold {TRAINING}", **dict.fromkeys(("validation", "bits/byte", "right"), f"bold {VALIDATION}")}
#: What stands before its figure in a plain line; units stand behind.
NAMED_FIRST = ("step", "loss", "validation")

Row = Mapping[str, Any]


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def peak_memory() -> int | None:
    """The most bytes that this process has held so far: of the device where it uses one, else of the host's memory.
    None where the system does not tell."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    # Linux counts in kilobytes, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Display:
    """Notes, long tasks and steps, on stderr; nothing at all if not `shown`."""

    def __init__(self, shown: bool = True, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, quiet=not shown, highlight=False)
        self.is_live = shown and self.console.is_terminal and not self.console.is_dumb_terminal

    def note(self, text: str) -> None:
        """One line that stays."""
        self.console.print(Text(text), soft_wrap=True)

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for a task of `total` bytes, or lines that say how long it will take; gives the function to call with
        each number of bytes done."""
        if not self.is_live:
            self.note(f"{description} ...")
            yield self._plain_task(description, total)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(description, total=total)
            yield lambda done: progress.advance(task, done)

    def _plain_task(self, description: str, total: int) -> Callable[[int], None]:
        done, told, every = 0, (time.monotonic(), 0), PLAIN_FIRST

        def advance(size: int) -> None:
            nonlocal done, told, every
            done += size
            seconds = time.monotonic() - told[0]
            if seconds >= every:
                # By the pace since the last line: what is passed over at the beginning takes no time.
                left = max(total - done, 0) * seconds / max(done - told[1], 1)
                self.note(f"{description}: {min(done / total, 1):.0%}, {clock(left)} left")
                told, every = (time.monotonic(), done), PLAIN_EVERY

        return advance

    @contextmanager
    def steps(
        self, begin: int, steps: int, *, title: str = "", peak: float | None = None, earlier: Iterable[Row] = ()
    ) -> Iterator[Callable[[Row], None]]:
        """Show steps `begin` to `steps`; gives the function to call with the metrics row of each.

        `peak`: tokens a second, if the machine did nothing but the products that the model needs. `earlier`: the rows
        of an earlier sitting, for the curve.
        """
        view = StepsView(begin, steps, title, peak)
        if not self.is_live:
            yield self._plain(view)
            return
        for row in earlier:
            view.draw(row)
        with Live(view, console=self.console, auto_refresh=False) as live:
            yield self._refreshing(view, live)
            live.refresh()

    def _refreshing(self, view: StepsView, live: Live) -> Callable[[Row], None]:
        shown = 0.0

        def show(row: Row) -> None:
            nonlocal shown
            view.add(row)
            if (now := time.monotonic()) - shown >= LIVE_EVERY:
                live.refresh()
                shown = now

        return show

    def _plain(self, view: StepsView) -> Callable[[Row], None]:
        shown = float("-inf")

        def show(row: Row) -> None:
            nonlocal shown
            view.add(row)
            now = time.monotonic()
            if now - shown >= PLAIN_EVERY or "validation_loss" in row or row["step"] == view.steps:
                self.console.print(Text(view.line()), soft_wrap=True)
                shown = now

        return show


class StepsView:
    """What is known of the steps so far, as rich draws it."""

    def __init__(self, begin: int, steps: int, title: str = "", peak: float | None = None) -> None:
        self.begin, self.steps, self.step = begin, steps, begin
        self.title, self.peak = title, peak
        self.losses, self.validations = Means(steps), Means(steps)
        self.loss: float | None = None
        self.measured: Row = {}
        self.skipped = 0
        self.began = time.monotonic()
        self.marks: deque[tuple[float, int]] = deque(maxlen=RATE_STEPS)

    def draw(self, row: Row) -> None:
        """Put the metrics row of a step into the curves."""
        if row["loss"] is not None:
            self.losses.add(row["step"] - 1, row["loss"])
        if row.get("validation_loss") is not None:
            self.validations.add(row["step"] - 1, row["validation_loss"])
            self.measured = row

    def add(self, row: Row) -> None:
        """Take in the metrics row of a step that is just over."""
        self.draw(row)
        self.step = row["step"]
        self.loss = row["loss"] if row["loss"] is not None else self.loss
        self.skipped += None in (row["loss"], row.get("gradient_norm", 0.0))
        self.marks.append((time.monotonic(), row["tokens"]))

    def facts(self) -> dict[str, tuple[int, str]]:
        """Each number by its unit: the width that keeps it in its column, and the figure, empty until there is one."""
        of = f"{self.steps:,}"
        facts = {"step": (2 * len(of) + 1, f"{self.step:,}/{of}")}
        facts["loss"] = (7, "" if self.loss is None else f"{self.loss:.4f}")
        facts["validation"] = (7, f"{self.measured['validation_loss']:.4f}" if self.measured else "")
        bits = self.measured.get("validation_bits_per_byte")
        if bits is not None or not self.measured:
            facts["bits/byte"] = (7, "" if bits is None else f"{bits:.4f}")
        if (accuracy := self.measured.get("validation_accuracy")) is not None:
            facts["right"] = (6, f"{accuracy:.1%}")
        rate = self.rate()
        facts["tokens/s"] = (9, "" if rate is None else f"{rate:,.0f}")
        if self.peak is not None:
            facts["of peak"] = (4, "" if rate is None else f"{rate / self.peak:.0%}")
        if (memory := peak_memory()) is not None:
            facts["GB"] = (6, f"{memory / 1e9:.2f}")
        if self.step > self.begin:
            each = (time.monotonic() - self.began) / (self.step - self.begin)
            facts["left"] = (8, clock(each * (self.steps - self.step)))
        if self.skipped:
            facts["skipped"] = (1, f"{self.skipped:,}")
        return facts

    def rate(self) -> float | None:
        """Tokens a second, lately."""
        if len(self.marks) < 2:
            return None
        (first, tokens), (last, more_tokens) = self.marks[0], self.marks[-1]
        return (more_tokens - tokens) / max(last - first, 1e-9)

    def line(self) -> str:
        """The numbers in one line, whose columns stay where they are from line to line."""
        shown = []
        for name, (width, figure) in self.facts().items():
            named = f"{name} {figure:>{width}}" if name in NAMED_FIRST else f"{figure:>{width}} {name}"
            shown.append(named if figure else " " * len(named))
        return "  ".join(shown).rstrip()

    def __rich__(self) -> RenderableType:
        facts = self.facts()
        table = Table.grid(padding=(0, 3))
        names = [name for name, (_, figure) in facts.items() if figure and name not in ("step", "left")]
        table.add_row(*(Text(facts[name][1], style=STYLES.get(name, "bold"), justify="right") for name in names))
        table.add_row(*(Text(name, style="dim", justify="right") for name in names))
        left = f"  {facts['left'][1]} left" if "left" in facts else ""
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(ratio=1)
        bar.add_row(ProgressBar(self.steps, self.step), Text(f"step {facts['step'][1]}{left}", no_wrap=True))
        curves = Curves([(self.validations, VALIDATION), (self.losses, TRAINING)])
        return Panel(
            Group(curves, Text(), table, Text(), bar),
            title=Text(self.title, style="bold", overflow="ellipsis") if self.title else None,
            title_align="left",
            border_style="dim",
            width=WIDEST,
            padding=(0, 1),
        )
