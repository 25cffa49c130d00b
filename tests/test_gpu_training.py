"""benchmarks/gpu_training.py goes through all its ways, with and without a GPU."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(*arguments: str) -> str:
    command = [sys.executable, str(BENCHMARKS / "gpu_training.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_side_takes_a_step() -> None:
    """Each shape beside each side: a rate and a share of the peak, on the CPU."""
    rows = run("--smoke").splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert [(row[0], row[3]) for row in cells] == [
        (f"`{shape} 2x32`", side) for shape in ("gpt2", "llama") for side in ("nanoGPT's model", "transformers")
    ]
    assert all(re.fullmatch(r"[\d,]+ \(\d+%\)", row[place]) for row in cells for place in (2, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence says so, and nothing is recorded."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = (BENCHMARKS / "RESULTS.md").read_bytes()
    importlib.import_module("gpu_training").main(["--write"])
    assert (
        capsys.readouterr().out
        == "there is no CUDA device here, so nothing is measured; --smoke tries the ways on the CPU\n"
    )
    assert (BENCHMARKS / "RESULTS.md").read_bytes() == before
