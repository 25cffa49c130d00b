"""What a person sees of a run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from anyformer.training.watching import progress
from anyformer.training.watching.progress import Display, StepsView, clock


def row(step: int, loss: float | None, **more: float) -> dict[str, float | None]:
    return {"step": step, "tokens": step * 100, "loss": loss, **more}


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3661, "1:01:01")])
def test_times_read_as_a_clock(seconds: float, shown: str) -> None:
    """Hours only where there are any."""
    assert clock(seconds) == shown


def test_the_facts_are_those_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step, loss, the last validation, tokens a second and their share of the peak, memory, the time left at the pace
    so far; how many steps were skipped, once there are any."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    monkeypatch.setattr(progress, "peak_memory", lambda: 1_500_000_000)
    measured = {"validation_loss": 1.1, "validation_bits_per_byte": 1.5}
    view = StepsView(10, 50, peak=80.0)
    for step in range(11, 21):
        now += 2.0
        view.add(row(step, 3.0 - step / 100, **(measured if step == 15 else {})))
    assert {name: figure for name, (_, figure) in view.facts().items()} == {
        "step": "20/50",
        "loss": "2.8000",
        "validation": "1.1000",
        "bits/byte": "1.5000",
        "tokens/s": "50",
        "of peak": "62%",
        "GB": "1.50",
        "left": "1:00",
    }
    view.add(row(21, None, validation_loss=1.2, validation_accuracy=0.25))
    facts = view.facts()
    assert facts["loss"][1] == "2.8000" and facts["validation"][1] == "1.2000" and facts["skipped"][1] == "1"
    assert "bits/byte" not in facts and facts["right"][1] == "25.0%"


def test_plain_lines_line_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first, which lacks the numbers to come, to the last, every unit stands in its column."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    view, lines = StepsView(0, 20_000, peak=1e6), []
    for step in range(1, 20_001, 1999):
        now += 9.0
        measured = {"validation_loss": 1.1, "validation_bits_per_byte": 1.5} if step > 2000 else {}
        view.add(row(step * 100, 12.0 - step / 2000, **measured))
        view.step = step
        lines.append(view.line())
    columns = {unit: {line.find(unit) for line in lines} - {-1} for unit in ("loss", "validation", "bits", "tokens/s")}
    assert all(len(places) == 1 for places in columns.values()), lines
    assert {line.find(" left") for line in lines} == {lines[-1].find(" left")}


def test_the_memory_is_that_of_this_process() -> None:
    """What is taken shows up in it."""
    before = progress.peak_memory()
    if before is None:
        pytest.skip("this system does not tell a process how much memory it held")
    taken = bytearray(b"x" * 300_000_000)
    after = progress.peak_memory()
    assert after is not None and after >= len(taken) and after >= before


def shown(terminal: bool, width: int = 80) -> str:
    """What a display writes for a few steps and a task."""
    file = io.StringIO()
    display = Display(console=Console(file=file, force_terminal=terminal, width=width, legacy_windows=False))
    display.note("a [note] with brackets")
    with display.task("tokenising", 100) as advance:
        advance(100)
    with display.steps(0, 3, title="some/run") as show:
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
    assert lines[2].startswith("step 1/3  loss  3.0000")
    assert lines[-1].startswith("step 3/3  loss  1.0000  validation  1.0000   2.5000 bits/byte")
    assert not any("\x1b" in line for line in lines)


def test_a_note_stays_one_line_however_long() -> None:
    """A command that it tells can be copied from a log."""
    file, command = io.StringIO(), "go on with: anyformer train --resume " + "long/" * 30
    Display(console=Console(file=file, width=80)).note(command)
    assert file.getvalue() == f"{command}\n"


def test_on_a_terminal_the_display_is_drawn_anew() -> None:
    """The last state stays on the screen: the curve, the numbers with their units, a bar, under the run's name."""
    text = shown(terminal=True)
    assert "\x1b" in text and "step 3/3" in text and "2.5000" in text and "bits/byte" in text
    assert "some/run" in text and any(0x2800 < ord(character) < 0x2900 for character in text)


def test_a_silent_display_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """For callers who have a display of their own."""
    display = Display(shown=False)
    display.note("note")
    with display.task("task", 1) as advance, display.steps(0, 1) as show:
        advance(1)
        show(row(1, 1.0, validation_loss=1.0))
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_a_long_task_says_in_plain_lines_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a few seconds, then now and then, by the pace since the last line; a short one does not."""
    now, console = 100.0, Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Display(console=console).task("tokenising", 1000) as advance:
        for _ in range(40):
            now += 1.0
            advance(20)
    assert console.file.getvalue().splitlines() == [
        "tokenising ...",
        "tokenising: 10%, 0:45 left",
        "tokenising: 40%, 0:30 left",
        "tokenising: 70%, 0:15 left",
    ]
    with Display(console=console).task("learning", 10) as advance:
        advance(10)
    assert console.file.getvalue().splitlines()[4:] == ["learning ..."]
