"""The page about a run: made of its files alone, whatever state they are in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from anyformer.errors import TrainingError
from anyformer.training import train
from anyformer.training.watching.report import facts, read_history, write_report

Recipes = Callable[..., dict[str, Any]]


class Page(HTMLParser):
    """What a browser would make of the page: elements that are open, text, and anything that it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.said: list[str] = []
        self.elements: list[str] = []
        self.fetched: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "path", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open and "script" not in self.open:
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def read(directory: Path) -> Page:
    """The page of a run, whole and standing for itself."""
    page = Page(write_report(directory).read_text(encoding="utf-8"))
    assert page.open == [] and page.fetched == [] and "@import" not in "".join(page.said)
    return page


def row(step: int, loss: float | None, **more: Any) -> dict[str, Any]:
    known = {"step": step, "tokens": 100 * step, "elapsed": 0.5 * step, "loss": loss}
    return {**known, "gradient_norm": loss, "learning_rate": 1e-3, **more}


def make_run(directory: Path, rows: Iterable[dict[str, Any]], steps: int = 10) -> Path:
    """The least that a run is: its recipe and its metrics."""
    directory.mkdir(parents=True, exist_ok=True)
    recipe = {"run": {"directory": str(directory)}, "training": {"objective": "causal", "sequence_length": 32}}
    (directory / "run.json").write_text(
        json.dumps({"recipe": recipe, "environment": {"device": "cpu"}, "steps": steps})
    )
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_a_real_run_is_told_whole(recipe: Recipes) -> None:
    """What was trained on what, by which recipe, where; what came of it; with its curves."""
    result = train(recipe(steps=8, validate_every=4), progress=False)
    page = read(result.directory)
    assert "finished · 8 steps" in page.text and f"{result.validation_bits_per_byte:.3f} bits per byte" in page.text
    assert "decoder: 2 layers, 16 wide" in page.text and "batch_tokens = 256" in page.text
    assert "validation" in page.text and "0.txt" in page.text and "threads" in page.text
    for title in ("Loss", "Bits per byte", "Learning rate", "Gradient norm", "Tokens a second"):
        assert title in page.text
    assert page.elements.count("svg") == 5


def test_a_run_of_one_step(tmp_path: Path) -> None:
    """A point is drawn where there is no curve yet."""
    page = read(make_run(tmp_path, [row(1, 4.25)], steps=1))
    assert "A training loss of 4.2500, after 100 tokens in 0:00" in page.text
    assert "finished · 1 step" in page.text and "1 steps" not in page.text
    assert "svg" in page.elements


def test_a_run_before_its_first_step(tmp_path: Path) -> None:
    """Also before there are metrics, and before it is known how many steps there will be."""
    directory = make_run(tmp_path, [])
    assert "No step is done yet." in read(directory).text
    (directory / "metrics.jsonl").unlink()
    run = json.loads((directory / "run.json").read_text())
    (directory / "run.json").write_text(json.dumps({"recipe": run["recipe"], "environment": {}}))
    page = read(directory)
    assert "No step is done yet." in page.text and "svg" not in page.elements


def test_a_run_that_was_killed(tmp_path: Path) -> None:
    """It says how far it came and how it goes on; a torn last line is left out."""
    directory = make_run(tmp_path, [row(step, 3.0) for step in range(1, 5)])
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "tok')
    page = read(directory)
    assert "step 4 of 10" in page.text and f"anyformer train --resume {directory}" in page.text


def test_losses_that_are_no_numbers_are_counted_and_marked(tmp_path: Path) -> None:
    """Skipped steps are gaps in the curve, marked below it; nothing but them still makes a page."""
    rows = [row(step, None if step in (3, 4) else 3.0) for step in range(1, 9)]
    rows[6]["gradient_norm"] = None
    directory = make_run(tmp_path, rows)
    assert ("steps skipped", "3") in facts(directory)["tiles"]
    assert list(read_history(directory / "metrics.jsonl").skipped) == [3, 4, 7]
    assert 'class="line marks"' in write_report(directory).read_text()
    page = read(make_run(tmp_path / "all", [row(step, None, validation_loss=None) for step in (1, 2, 3)]))
    assert "No finite loss" in page.text


def test_an_accuracy_is_the_result_where_there_is_one(tmp_path: Path) -> None:
    """In place of bits per byte, which only a text's own likelihood amounts to; a curve from two values on."""
    rows = [row(step, 2.0, validation_loss=1.5, validation_accuracy=0.625) for step in (1, 2)]
    page = read(make_run(tmp_path / "two", rows))
    assert "62.5% right on held-out data" in page.text and "Accuracy, on held-out data" in page.text
    page = read(make_run(tmp_path / "one", rows[:1]))
    assert "62.5% right on held-out data" in page.text and "Accuracy, on held-out data" not in page.text


def test_names_and_samples_cannot_break_the_page(tmp_path: Path) -> None:
    """Markup in names, prompts and answers is text; control characters are pictures."""
    evil = "</pre><script>alert('x')</script>"
    directory = make_run(tmp_path / "<img onerror=alert(1) src=x>", [row(1, 2.0)])
    sample = {"prompt": evil, "wanted": evil + "\x00", "answer": [["\x1b[31m" + evil, ""], ["&amp;", "wrong"]]}
    (directory / "samples.jsonl").write_text(json.dumps({"step": 1, "samples": [sample]}) + "\n")
    page = read(directory)
    assert page.elements.count("script") == 1 and "img" not in page.elements
    assert page.text.count(evil) == 3 and "&amp;" in page.text and "␀" in page.text and "␛[31m" in page.text
    assert "<img onerror=alert(1) src=x>" in page.text


def test_samples_are_shown_by_prompt_over_the_steps(tmp_path: Path) -> None:
    """Each prompt once, with what is wanted; of many steps some, the first and the last among them."""
    directory = make_run(tmp_path, [row(1, 2.0)])
    with (directory / "samples.jsonl").open("w") as file:
        for step in range(1, 101):
            asked = [{"prompt": name, "wanted": "yes", "answer": [[f"{name}{step}", ""]]} for name in ("a", "b")]
            file.write(json.dumps({"step": step, "samples": asked}) + "\n")
    prompts = facts(directory)["prompts"]
    assert [prompt["prompt"] for prompt in prompts] == ["a", "b"]
    assert len(prompts[0]["answers"]) == 12
    assert (prompts[0]["answers"][0], prompts[1]["answers"][-1]) == ((1, [["a1", ""]]), (100, [["b100", ""]]))


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    """Sixty thousand rows with a validation each hundredth: a few hundred points a curve are left of them."""
    rows = (
        row(
            step,
            2 + math.sin(step),
            **({"validation_loss": 2.0, "validation_bits_per_byte": 2.0} if step % 100 == 0 else {}),
        )
        for step in range(1, 60_001)
    )
    assert write_report(make_run(tmp_path, rows, steps=60_000)).stat().st_size < 150_000


def test_whose_home_it_is_stays_out_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is for showing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    page = read(make_run(tmp_path / "runs" / "one", [row(1, 2.0)]))
    assert 'directory = "~/runs/one"' in page.text


def test_there_must_be_a_run(tmp_path: Path) -> None:
    """Said in a sentence."""
    with pytest.raises(TrainingError, match="holds no run to report on"):
        write_report(tmp_path)
