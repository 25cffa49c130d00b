"""An experiment, run: its numbers, judged and drawn, as a JSON file and a picture beside it."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyformer import disk
from anyformer.errors import ExperimentError
from anyformer.experiments.experiment import Experiment, Lab, Numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Inches of a picture: what a page of text is wide, and a golden rectangle.
WIDTH, HEIGHT = 6.4, 4.0


def run(
    experiment: Experiment,
    out: Path,
    *,
    scale: float = 1.0,
    seed: int = 0,
    data: Path | None = None,
    model: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Put a claim to the test, and write `NAME.json` and `NAME.svg` into the directory `out`; returns what the JSON
    file holds. Nothing is written before all is measured, judged and drawn.

    Raises `ExperimentError` where it lacks what it needs, or was given what it does not take.
    """
    import torch

    from anyformer.training.watching.circumstances import circumstances

    if not 0 < scale < math.inf:
        raise ExperimentError(f"an experiment's scale is a positive number, not {scale}")
    for name, given in (("data", data), ("model", model)):
        if given is not None and name not in experiment.takes:
            raise ExperimentError(f"experiment {experiment.name} takes no {name}; leave out --{name}")
    if data is not None and not data.exists():
        raise ExperimentError(f"there is no {data}; experiment {experiment.name} takes {experiment.takes['data']}")
    _check_plotting()
    began = circumstances()
    clock, worked = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory() as directory, torch.random.fork_rng():
        torch.manual_seed(seed)
        lab = Lab(Path(directory), scale, seed, data, model, say)
        numbers = as_json(experiment.measure(lab))
    verdict = experiment.judge(numbers)
    result = {
        "experiment": experiment.name,
        "claim": experiment.claim,
        "source": experiment.source,
        "refuted_by": experiment.refuted_by,
        "verdict": verdict.word,
        "because": verdict.because,
        "scale": scale,
        "seed": seed,
        "given": {name: str(given) for name, given in (("data", data), ("model", model)) if given is not None},
        "seconds": round(time.monotonic() - clock, 1),
        "processor_seconds": round(time.process_time() - worked, 1),
        "machine": {**began, "cores": os.cpu_count(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "numbers": numbers,
    }
    drawn = picture(experiment, numbers)
    out.mkdir(parents=True, exist_ok=True)
    disk.write(out / f"{experiment.name}.svg", drawn)
    disk.write(out / f"{experiment.name}.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
    return result


def as_json(numbers: Numbers) -> Numbers:
    """Numbers as a file gives them back: what is judged now is what will be judged later."""
    return json.loads(json.dumps(numbers, allow_nan=False))


def picture(experiment: Experiment, numbers: Numbers) -> bytes:
    """The experiment's plot as SVG: the same bytes for the same numbers."""
    with _plain_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        experiment.draw(numbers, figure)
        return _svg(figure, experiment.claim)


def _svg(figure: Figure, title: str) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Title": title})
    return drawn.getvalue()


@contextmanager
def _plain_style() -> Iterator[None]:
    """Text stays text, names inside the file do not change from run to run, and nothing stands in the picture that
    says nothing."""
    import matplotlib as mpl

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "anyformer",
        "font.size": 10,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
    with mpl.rc_context(style):
        yield


def _check_plotting() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ExperimentError(
            "experiments draw with matplotlib, which is not installed: pip install 'anyformer[experiments]'"
        ) from None
