"""Runs as points: out of run directories and out of tables; what cannot be used is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from anyformer import families
from anyformer.errors import PlanError
from anyformer.laws import read_runs
from anyformer.planning import count


def run(directory: Path, rows: list[dict], size: str = "llama:tiny") -> Path:
    """A run's directory, as far as it is read here."""
    directory.mkdir(parents=True)
    spec = families.preset(size)
    assert spec is not None
    (directory / "spec.json").write_text(spec.to_json())
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def test_a_run_ends_with_its_last_measured_loss(tmp_path: Path) -> None:
    """On held-out text where that was measured, with the tokens read by then; else in training."""
    spec = families.preset("llama:tiny")
    assert spec is not None
    rows = [
        {"tokens": 10, "loss": 3.0},
        {"tokens": 20, "loss": 2.5, "validation_loss": 2.75},
        {"tokens": 30, "loss": 1},
    ]
    measured = read_runs([run(tmp_path / "a", rows)])
    assert measured.parameters[0] == count(spec)
    assert (measured.tokens[0], measured.losses[0]) == (20, 2.75)
    assert measured.flops[0] == 6 * count(spec) * 20
    assert read_runs([run(tmp_path / "b", rows[:1])]).losses[0] == 3.0


def test_a_folder_of_runs(tmp_path: Path) -> None:
    """All that are in it, by name, beside tables and single runs."""
    for name, loss in (("two", 2.0), ("one", 1.0)):
        run(tmp_path / "runs" / name, [{"tokens": 5, "loss": loss}])
    table = tmp_path / "more.csv"
    table.write_text("parameters,tokens,loss\n1e6,2e7,3.5\n")
    assert read_runs([tmp_path / "runs", table]).losses.tolist() == [1.0, 2.0, 3.5]


def test_tokens_of_a_table_may_be_told_by_flops(tmp_path: Path) -> None:
    """A sixth of them over the parameters; the worst runs can be left out."""
    table = tmp_path / "runs.csv"
    table.write_text("loss,flops,parameters\n3,6e16,1e6\n9,6e16,1e7\n2,6e17,1e7\n")
    found = read_runs([table])
    assert found.tokens == pytest.approx([1e10, 1e9, 1e10]) and found.flops == pytest.approx([6e16, 6e16, 6e17])
    assert np.array_equal(found.without_worst(1).losses, [3, 2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b\n1,2\n", "needs the columns parameters, loss, and tokens or flops; it has a, b"),
        ("parameters,tokens,loss\n1e6,many,3\n", "line 2: tokens is 'many', which is no number"),
        ("parameters,tokens,loss\n1e6,1e7,3\n1e6,0,3\n", "line 3: tokens is 0.0, and must be above 0"),
        ("parameters,tokens,loss\n1e6,1e7,nan\n", "line 2: loss is nan"),
        ("parameters,tokens,loss\n1e6,1e7\n", "line 2: loss is"),
        ("parameters,flops,loss\n0,1e7,3\n", "line 2: parameters is 0.0"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    """Named with their line."""
    table = tmp_path / "runs.csv"
    table.write_text(text)
    with pytest.raises(PlanError, match=said):
        read_runs([table])


def test_runs_that_cannot_be_used(tmp_path: Path) -> None:
    """No runs at all, what is none, one without a loss, a damaged one."""
    with pytest.raises(PlanError, match="no runs to fit a law to"):
        read_runs([])
    with pytest.raises(PlanError, match=r"no file or directory '.*nowhere' of runs"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(PlanError, match="has no loss in it"):
        read_runs([run(tmp_path / "empty", [{"tokens": 5, "loss": None}])])
    with pytest.raises(PlanError, match="tokens is None"):
        read_runs([run(tmp_path / "odd", [{"loss": 3.0}])])
    damaged = run(tmp_path / "damaged", [{"tokens": 5, "loss": 3.0}])
    (damaged / "metrics.jsonl").write_text('{"tokens": 5, "loss": 3.0}\n{"tok')
    with pytest.raises(PlanError, match="not JSON in line 2"):
        read_runs([damaged])
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="is not text"):
        read_runs([tmp_path / "bytes.csv"])
