"""benchmarks/gpu_inference.py goes through all its ways, with and without a GPU."""

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
    command = [sys.executable, str(BENCHMARKS / "gpu_inference.py"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_every_side_reads_and_decodes() -> None:
    """Two batches beside transformers: rates, and shares of the bandwidth of decoding, on the CPU."""
    rows = run("--smoke").splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    assert [(row[0], row[1].split()[0], row[3]) for row in cells] == [
        (f"`tiny x{batch}`", what, "transformers (eager)") for batch in (1, 2) for what in ("prefill", "decode")
    ]
    for row in cells:
        figure = r"[\d,]+ \(\d+%\)" if row[1].startswith("decode") else r"[\d,]+"
        assert re.fullmatch(figure, row[2]) and re.fullmatch(figure, row[4])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")
def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence says so, and nothing is recorded."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    before = (BENCHMARKS / "RESULTS.md").read_bytes()
    importlib.import_module("gpu_inference").main(["--write"])
    assert (
        capsys.readouterr().out
        == "there is no CUDA device here, so nothing is measured; --smoke tries the ways on the CPU\n"
    )
    assert (BENCHMARKS / "RESULTS.md").read_bytes() == before
