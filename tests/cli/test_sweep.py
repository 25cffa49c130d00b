"""anyformer sweep, as a new user would try it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_sweep_is_a_table_and_json(anyformer, recipe: Path, tmp_path: Path) -> None:
    """One small run, its row, and the command that fits a law; asked again with --json, the same as data."""
    question = ("sweep", recipe, "--budgets", "1e9", "--sizes", 1, "-o", tmp_path / "out")
    ran = anyformer(*question)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[1].split()[0] == "1e+09"
    assert f"anyformer plan --fit {tmp_path / 'out'}" in ran.err
    again = anyformer(*question, "--json")
    assert len(json.loads(again.out)["runs"]) == 1 and "1 of 1 runs are done" in again.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--budgets", "lots"), "are no numbers of FLOPs"),
        (("--budgets", ","), "there is no budget"),
        (("--budgets", "1e9,1e9"), "given twice"),
        (("--budgets", "1e9", "--span", "0.5"), "no ladder"),
        (("--budgets", "1e8"), "raise the budget"),
    ],
)
def test_a_mistake_is_one_sentence(anyformer, recipe: Path, tmp_path: Path, arguments, says: str) -> None:
    """Exit code 2, the sentence last on stderr, nothing left behind."""
    ran = anyformer("sweep", recipe, "-o", tmp_path / "out", *arguments)
    assert ran.code == 2 and says in ran.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
