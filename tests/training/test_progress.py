"""What a person sees of a run."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from anyformer.training import progress
from anyformer.training.progress import BARS, Display, StepsView, clock, sparkline


def row(step: int, loss: float | None, **more: float) -> dict[str, float | None]:
    return {"step": step, "tokens": step * 100, "loss": loss, **more}


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 60))
def test_a_sparkline_is_never_too_wide_and_its_bars_follow_the_values(values: list[float], width: int) -> None:
    """A bar a value while they fit; the lowest and highest bars are those of the lowest and highest values."""
    line = sparkline(values, width)
    assert len(line) == min(width, len(values)) and set(line) <= set(BARS)
    if len(values) <= width and values and max(values) - min(values) > 1e-3:
        assert line[values.index(min(values))] == BARS[0] and line[values.index(max(values))] == BARS[-1]


def test_a_sparkline_falls_with_the_loss() -> None:
    """Also where many values share a bar."""
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert sparkline(list(range(160, 0, -1)), 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([2.0, 2.0]) == "▁▁" and sparkline([]) == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_times_read_as_a_clock(seconds: float, shown: str) -> None:
    """Hours only where there are any."""
    assert clock(seconds) == shown


def test_the_facts_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step, loss, the last validation, tokens a second, and the time left at the pace so far."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    measured = {"validation_loss": 1.1, "validation_bits_per_byte": 1.5}
    view = StepsView(10, 50)
    for step in range(11, 21):
        now += 2.0
        view.add(row(step, 3.0 - step / 100, **(measured if step == 15 else {})))
    assert list(view.facts().values()) == [
        "step 20/50",
        "loss 2.800",
        "validation 1.500 bits/byte",
        "50 tokens/s",
        "1:00 left",
    ]
    view.add(row(21, None, validation_loss=1.2))
    assert (view.facts()["loss"], view.facts()["validation"]) == ("loss 2.800", "validation 1.200")


def shown(terminal: bool, width: int = 80) -> str:
    """What a display writes for a few steps and a task."""
    file = io.StringIO()
    display = Display(console=Console(file=file, force_terminal=terminal, width=width, legacy_windows=False))
    display.note("a [note] with brackets")
    with display.task("tokenising", 100) as advance:
        advance(100)
    with display.steps(0, 3) as show:
        for step in (1, 2, 3):
            show(
                row(
                    step, 4.0 - step, **({"validation_bits_per_byte": 2.5, "validation_loss": 1.0} if step == 3 else {})
                )
            )
    return file.getvalue()


def test_elsewhere_than_on_a_terminal_lines_are_plain() -> None:
    """No control codes, one line a report, the last step always."""
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "a [note] with brackets" and lines[1] == "tokenising ..."
    assert lines[2].startswith("step 1/3  loss 3.000")
    assert lines[-1].startswith("step 3/3  loss 1.000  validation 2.500 bits/byte")
    assert not any("\x1b" in line for line in lines)


def test_on_a_terminal_the_display_is_drawn_anew() -> None:
    """The last state stays on the screen: numbers, a bar, and the loss as a sparkline."""
    text = shown(terminal=True)
    assert "\x1b" in text and "step 3/3" in text and "2.500 bits/byte" in text and "█▅▁" in text


def test_a_silent_display_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """For callers who have a display of their own."""
    display = Display(shown=False)
    display.note("note")
    with display.task("task", 1) as advance, display.steps(0, 1) as show:
        advance(1)
        show(row(1, 1.0, validation_loss=1.0))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
