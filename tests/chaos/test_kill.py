"""`kill -9` at any moment, then resume: the run ends in the same metrics and weights, to the bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from anyformer.training import read_metrics

#: How a command ended.
KILLED, FINISHED = int(signal.SIGKILL), 0


def recipe(texts: Path) -> dict[str, Any]:
    """Seven steps with dropout, a checkpoint every third; the text is tokenised, and its tokenizer trained, as well."""
    norm = {"kind": "rms"}
    attention = {"kind": "attention", "heads": 2, "kv_heads": 1, "head_dim": 4, "visibility": "causal"}
    feed_forward = {"kind": "feed_forward", "hidden": 16}
    branches = [{"mixer": mixer, "norm": norm, "dropout": 0.1} for mixer in (attention, feed_forward)]
    stack = {"dim": 8, "depth": 1, "pattern": [{"branches": branches}], "norm": norm}
    return {
        "model": {"spec": {"decoder": stack, "head": {"kind": "language_model"}}},
        "tokenizer": {"train": {"vocabulary": 270}},
        "data": {"train": str(texts)},
        "training": {
            "steps": 7,
            "batch_tokens": 128,
            "sequence_length": 16,
            "checkpoint_every": 3,
            "validate_every": 4,
        },
    }


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Trains or resumes in a directory, killed as told; gives the signal that ended it."""
    folder = tmp_path_factory.mktemp("chaos")
    chance = random.Random(0)
    for index in range(5):
        words = chance.choices(["to", "be", "or", "not", "that", "is", "the", "question"], k=300)
        (folder / f"{index}.txt").write_text("\n".join(words))
    (folder / "recipe.json").write_text(json.dumps(recipe(folder)))
    arguments = [sys.executable, str(Path(__file__).with_name("killed.py")), str(folder / "recipe.json")]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None

        def command(directory: Path, *how: object) -> int:
            print(directory, *how, file=process.stdin, flush=True)
            return int(process.stdout.readline())

        yield command
        process.stdin.close()


@pytest.fixture(scope="module")
def whole(command: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stopped."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    assert command(directory) == FINISHED
    return directory


def outcome(directory: Path) -> tuple[list[dict[str, Any]], bytes]:
    """The metrics but for the times, and the weights."""
    rows = [{**row, "elapsed": 0} for row in read_metrics(directory / "metrics.jsonl")]
    return rows, (directory / "model.safetensors").read_bytes()


def test_killed_at_any_call_that_touches_the_disk(command: Callable[..., int], whole: Path, tmp_path: Path) -> None:
    """Every syncing, renaming and making of a file, from the first of the run to the last, in strides: while the text
    is tokenised, inside a save, between a row and its checkpoint, while the finished model is written."""
    kills = 0
    for call in count(1, 8):
        directory = tmp_path / str(call)
        if command(directory, "call", call) == FINISHED:
            break
        kills += 1
        assert command(directory) == FINISHED
        assert outcome(directory) == outcome(whole), f"killed at call {call}"
    assert kills > 10


def test_killed_again_and_again(command: Callable[..., int], whole: Path, tmp_path: Path) -> None:
    """Each resumption is killed too, inside its own saves, until one comes through."""
    chance = random.Random(1)
    directory, kills = tmp_path / "run", 0
    while command(directory, "call", chance.randint(5, 60)) == KILLED:
        kills += 1
    assert kills > 2
    assert outcome(directory) == outcome(whole)


@pytest.mark.parametrize("seed", range(4))
def test_killed_at_a_random_moment(command: Callable[..., int], whole: Path, tmp_path: Path, seed: int) -> None:
    """Not only where files are touched: in the middle of a step, a validation, a write."""
    directory = tmp_path / "run"
    assert command(directory, "after", random.Random(seed).uniform(0.05, 0.6)) in (KILLED, FINISHED)
    assert command(directory) == FINISHED
    assert outcome(directory) == outcome(whole)
