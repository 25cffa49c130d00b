"""An experiment is measured, judged and drawn before anything of it is written; what it lacks is said in a sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from anyformer.errors import ExperimentError
from anyformer.experiments import Experiment, Lab, Verdict, does_not_hold, experiment, holds, picture, run


def growth(lab: Lab) -> dict:
    """Squares, by a number as key: what JSON makes a text of."""
    return {"squares": {n: n**2 for n in range(1, lab.times(10, least=2) + 1)}, "seed": lab.seed}


def judge(numbers: dict) -> Verdict:
    squares = [numbers["squares"][str(n + 1)] for n in range(len(numbers["squares"]))]
    return holds("they grow") if squares == sorted(squares) else does_not_hold("they do not")


def draw(numbers: dict, figure) -> None:
    figure.subplots().plot(list(numbers["squares"].values()))


GROWTH = Experiment("growth", "Squares grow.", "Euclid, 300 BC", "one is smaller", growth, judge, draw)


def test_writes_numbers_verdict_and_picture(tmp_path: Path) -> None:
    """The file holds the claim, the verdict, the numbers, and where they were measured; the same numbers give the same
    picture, to the byte."""
    result = run(GROWTH, tmp_path / "new", scale=0.5, seed=3)
    assert result == json.loads((tmp_path / "new/growth.json").read_text())
    assert (result["verdict"], result["because"]) == ("holds", "they grow")
    assert result["numbers"] == {"squares": {"1": 1, "2": 4, "3": 9, "4": 16, "5": 25}, "seed": 3}
    assert {"torch", "threads", "processor"} <= set(result["machine"])
    assert (tmp_path / "new/growth.svg").read_bytes() == picture(GROWTH, result["numbers"])


def test_nothing_is_written_of_what_fails(tmp_path: Path) -> None:
    """An experiment that breaks, or whose numbers are none, leaves no file behind."""
    broken = Experiment("broken", "It works.", "nobody, 2000", "it breaks", lambda lab: {"x": math.nan}, judge, draw)
    with pytest.raises(ValueError, match="JSON"):
        run(broken, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"scale": 0.0}, "positive number"),
        ({"scale": math.inf}, "positive number"),
        ({"data": Path("nowhere")}, "takes no data"),
        ({"model": "llama:tiny"}, "takes no model"),
    ],
)
def test_what_it_cannot_use_is_refused(asked: dict, said: str, tmp_path: Path) -> None:
    """In one sentence, before anything is measured."""
    with pytest.raises(ExperimentError, match=said):
        run(GROWTH, tmp_path, **asked)


def test_data_that_is_not_there_is_named(tmp_path: Path) -> None:
    """With what the experiment takes."""
    with pytest.raises(ExperimentError, match=r"there is no .*nowhere; experiment causal takes a text"):
        run(experiment("causal"), tmp_path, data=tmp_path / "nowhere")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ExperimentError, match="no experiment 'casual'; did you mean causal\\? There are activations"):
        experiment("casual")
