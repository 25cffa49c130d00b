"""Annotations of the rooms that torch's compiler looks into, checked while a part of their tests runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

#: What leads through every part and form: random models alone and in batches, with caches, by every kernel.
RUNS = {
    "model": "alone or schedules and 0-encoder or tied or chunks_never",
    "parts": "nothing or capacity or equations and (sinks or window) or definition and 5 or neighbours",
}


@pytest.mark.parametrize("room", RUNS)
def test_annotations_are_true(room: str) -> None:
    """Every argument and every result is of the type that its annotation says, in a process of its own."""
    command = [sys.executable, "-m", "pytest", str(HERE / room), "-k", RUNS[room], "-p", "no:xdist"]
    environment = os.environ | {"ANYFORMER_CHECK_TYPES": "all"}
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_a_wrong_type_would_be_noticed() -> None:
    """The check is on: what is no mask is refused where it enters."""
    program = "import conftest; from anyformer.parts.masks import And, Causal;And(Causal(), 3)"
    environment = os.environ | {"ANYFORMER_CHECK_TYPES": "all", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "BeartypeCallHintParamViolation" in done.stderr
