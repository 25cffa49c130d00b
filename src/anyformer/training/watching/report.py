"""RUN/report.html: a run on one page that stands for itself. What was trained on what, what came of it, its curves and
samples; drawn without a network and without JavaScript, which only reads values off the curves.

It is made of the files of the run directory alone, so also of a run that is still going, or was killed.
"""

from __future__ import annotations

import re
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anyformer import checkpoints, disk, spec
from anyformer.errors import AnyformerError, TrainingError
from anyformer.planning import describe, parameters
from anyformer.toml import to_toml
from anyformer.training.state import Checkpoints, metrics_rows, read_json
from anyformer.training.watching.charts import Chart, Curve, chart, compact
from anyformer.training.watching.progress import clock

if TYPE_CHECKING:
    from jinja2 import Environment

#: Where the templates are.
HERE = "anyformer.training.watching"
#: Of the samples over time, and of the files of the data, so many are on the page; of steps that were skipped, so many
#: are pointed out.
SAMPLED, FILES, MARKS = 12, 30, 200
#: Tokens a second are shown for so many stretches of a run at most, each of so many steps at least.
RATES, FEWEST = 120, 8
#: Characters that no page shows, as Unicode's pictures of them.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t\r"} | {0x7F: 0x2421, ord("\r"): None}


@dataclass
class History:
    """The columns of `metrics.jsonl`, float64, NaN where a row has none; and validations as (steps, values) by name."""

    step: np.ndarray
    tokens: np.ndarray
    elapsed: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    learning_rate: np.ndarray
    validation: dict[str, tuple[list[float], list[float]]]

    @property
    def skipped(self) -> np.ndarray:
        """The steps that left the weights alone, because a loss or gradient was not finite."""
        return self.step[np.isnan(self.loss) | np.isnan(self.gradient_norm)]

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens a second over the run: (the step at the end of each stretch, the median of its steps). Steps with a
        validation or a checkpoint are slower, and fewer than half of them."""
        seconds, tokens = np.maximum(np.diff(self.elapsed), 1e-4), np.diff(self.tokens)
        if not len(seconds):
            return seconds, seconds
        stretches = np.array_split(tokens / seconds, min(RATES, -(-len(seconds) // FEWEST)))
        ends = np.cumsum([len(stretch) for stretch in stretches])
        return self.step[ends], np.array([np.median(stretch) for stretch in stretches])


def write_report(directory: Path) -> Path:
    """Write `report.html` into a run's directory, and give its path. Raises `TrainingError` where there is no run."""
    if not (directory / "run.json").exists():
        raise TrainingError(f"{directory} holds no run to report on (it has no run.json)")
    template = templates(HERE).get_template("report.html")
    path = directory / "report.html"
    disk.write(path, template.render(facts(directory)).encode("utf-8", "replace"))
    return path


def templates(room: str) -> Environment:
    """The templates of pages that stand for themselves: those of a room's own, and what they share."""
    # Lazily, because a run does not wait for a template engine before its first step.
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(each, ".") for each in (room, HERE)])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"compact": compact, "visible": visible, "count": lambda number: f"{number:,.0f}"}
    return environment


def facts(directory: Path) -> dict[str, Any]:
    """Everything that the page says, by the names of its template."""
    run = read_json(directory / "run.json")
    history = read_history(directory / "metrics.jsonl")
    described = _spec(directory)
    steps = run.get("steps")
    done = int(history.step[-1]) if len(history.step) else 0
    tokenised = directory / "data" / "manifest.json"
    return {
        "name": directory.resolve().name,
        "objective": run["recipe"]["training"]["objective"],
        "done": done,
        "steps": steps,
        "is_finished": done == steps,
        "resume": f"anyformer train --resume {directory}",
        "result": result(history),
        "tiles": tiles(history, described, _peak(directory)),
        "main": loss_chart(history),
        "charts": [drawn for drawn in small_charts(history) if drawn is not None],
        "prompts": samples(directory / "samples.jsonl"),
        "model": describe(described, run["recipe"]["training"]["sequence_length"], "float32") if described else None,
        "recipe": _at_home(to_toml(run["recipe"])),
        "environment": run["environment"] | run.get("started", {}),
        "data": data(read_json(tokenised)) if tokenised.exists() else None,
    }


def read_history(path: Path) -> History:
    """The metrics of a run as columns; none where there is no step yet."""
    columns = {name: array("d") for name in ("step", "tokens", "elapsed", "loss", "gradient_norm", "learning_rate")}
    validation: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for row in metrics_rows(path) if path.exists() else ():
        for name, column in columns.items():
            value = row.get(name)
            column.append(float("nan") if value is None else value)
        for name, value in row.items():
            if name.startswith("validation_") and value is not None:
                steps, values = validation[name.removeprefix("validation_")]
                steps.append(row["step"])
                values.append(value)
    return History(**{name: np.array(column) for name, column in columns.items()}, validation=dict(validation))


def result(history: History) -> str:
    """What came of the run, in one sentence."""
    if not len(history.step):
        return "No step is done yet."
    last = {name: values[-1] for name, (_, values) in history.validation.items()}
    seen = f"{compact(history.tokens[-1])} tokens in {clock(history.elapsed[-1])}"
    if "bits_per_byte" in last:
        return f"{last['bits_per_byte']:.3f} bits per byte of held-out text, after {seen}."
    if "accuracy" in last:
        return f"{last['accuracy']:.1%} right on held-out data, after {seen}."
    if "loss" in last:
        return f"A loss of {last['loss']:.4f} on held-out data, after {seen}."
    losses = history.loss[np.isfinite(history.loss)]
    return f"A training loss of {losses[-1]:.4f}, after {seen}." if len(losses) else f"No finite loss, after {seen}."


def tiles(history: History, described: spec.Transformer | None, peak: float | None) -> list[tuple[str, str]]:
    """The figures at the top of the page, each with what it is."""
    shown: list[tuple[str, str]] = []
    for name, (_, values) in sorted(history.validation.items(), key=lambda item: item[0] != "loss"):
        figure = f"{values[-1]:.1%}" if name == "accuracy" else f"{values[-1]:.4f}"
        shown.append((f"validation {name.replace('_per_', '/').replace('_', ' ')}", figure))
    loss = Curve.of(history.step, history.loss)
    if len(loss.mean):
        shown.append(("training loss", f"{loss.smoothed().mean[-1]:.4f}"))
    if described is not None:
        shown.append(("parameters", compact(parameters(described).total)))
    if len(history.step):
        shown += [("tokens", compact(history.tokens[-1])), ("time", clock(history.elapsed[-1]))]
    _, rates = history.rates()
    if len(rates):
        rate = float(np.median(rates))
        shown.append(("tokens a second", compact(round(rate))))
        if peak is not None:
            shown.append(("of the machine's peak", f"{rate / peak:.0%}"))
    if len(history.skipped):
        shown.append(("steps skipped", f"{len(history.skipped):,}"))
    return shown


def loss_chart(history: History) -> Chart | None:
    """The training loss, raw and smoothed, the validation loss, and the steps that were skipped."""
    raw = Curve.of(history.step, history.loss)
    held_out = Curve.of(*history.validation.get("loss", ([], [])))
    curves = [("raw", "training", raw), ("smooth", "smoothed", raw.smoothed()), ("held-out", "validation", held_out)]
    return chart("Loss, nats a target", curves, _steps(history), marks=history.skipped[:MARKS].tolist())


def small_charts(history: History) -> Iterator[Chart | None]:
    """What else is followed over the steps."""
    across = _steps(history)
    for name, measured in history.validation.items():
        # A single value is no curve, and stands among the figures above.
        if name != "loss" and len(measured[0]) > 1:
            title = f"{name.replace('_', ' ').capitalize()}, on held-out data"
            yield chart(title, [("held-out", None, Curve.of(*measured))], across)
    learning_rate = Curve.of(history.step, history.learning_rate)
    yield chart("Learning rate", [("smooth", None, learning_rate)], across, zero=True)
    norm = Curve.of(history.step, history.gradient_norm)
    # Their logarithms are averaged, so that a single large one is no hill.
    logarithms = Curve.of(history.step, np.log(np.maximum(history.gradient_norm, 1e-12))).smoothed()
    means = np.exp(logarithms.mean)
    smooth = Curve(logarithms.x, means, means, means)
    yield chart("Gradient norm", [("raw", None, norm), ("smooth", None, smooth)], across, zero=True)
    yield chart("Tokens a second", [("smooth", None, Curve.of(*history.rates()))], across, zero=True)


def _steps(history: History) -> tuple[float, float]:
    return (0.0, float(history.step[-1])) if len(history.step) else (0.0, 1.0)


def samples(path: Path) -> list[dict[str, Any]]:
    """What the model wrote over time, by prompt: each with what is wanted and the answers, some steps of all."""
    rows = list(metrics_rows(path)) if path.exists() else []
    kept = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SAMPLED)).astype(int)) if rows else ()
    prompts: dict[str, dict[str, Any]] = {}
    for row in (rows[index] for index in kept):
        for sample in row["samples"]:
            known = {"prompt": sample["prompt"], "wanted": sample["wanted"], "answers": []}
            prompts.setdefault(sample["prompt"], known)["answers"].append((row["step"], sample["answer"]))
    return list(prompts.values())


def data(manifest: dict[str, Any]) -> dict[str, Any]:
    """What was read: files, and for each split its documents, tokens and bytes."""
    splits = []
    for name, said in manifest["splits"].items():
        tokens = sum(said["columns"].values())
        each = said["bytes"] / max(tokens, 1)
        splits.append((name, f"{said['documents']:,}", f"{tokens:,}", f"{said['bytes']:,}", f"{each:.2f}"))
    files = [(_at_home(file["path"]), file["size"]) for file in manifest["files"]]
    return {
        "splits": splits,
        "files": files[:FILES],
        "more": len(files) - FILES,
        "size": sum(size for _, size in files),
    }


def _peak(directory: Path) -> float | None:
    """Tokens a second at the peak of the machine that was measured last."""
    path = directory / "peak.json"
    rates = list(read_json(path).values()) if path.exists() else []
    return rates[-1]["tokens_per_second"] if rates else None


def _spec(directory: Path) -> spec.Transformer | None:
    """The spec of the finished model, or of the newest checkpoint that can be opened; None before the first."""
    for place in (directory, *Checkpoints(directory).paths()):
        try:
            return checkpoints.open(place).spec
        except AnyformerError:
            continue
    return None


def visible(text: str) -> str:
    """A text with its control characters as pictures of them."""
    return text.translate(PICTURES)


def _at_home(text: str) -> str:
    """A text without the name of whose home it is in: a report is for showing."""
    home = str(Path.home())
    return re.sub(rf"{re.escape(home)}(?=/)", "~", text) if len(home) > 1 else text
