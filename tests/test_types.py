"""Annotations of the rooms that torch's compiler looks into, checked while a part of their tests runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

#: What leads through every part: random models alone and in batches, with caches; each kind of part on its own.
RUNS = {
    "model": "alone or schedules and 0-encoder or tied or chunks_never",
    "parts/test_cache.py": "capacity",
    "parts/test_attention.py": "sinks or window or cross",
    "parts/kernels/test_reference.py": "weights",
}


def test_annotations_are_true() -> None:
    """Every argument and every result is of the type that its annotation says, in a process of its own."""
    files = [str(HERE / name) for name in RUNS]
    command = [sys.executable, "-m", "pytest", *files, "-k", " or ".join(RUNS.values()), "-p", "no:xdist"]
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
