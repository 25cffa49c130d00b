"""anyformer compare, as a new user would try it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def test_a_comparison_is_a_table_and_json(anyformer, recipe: Path, tmp_path: Path) -> None:
    """The table has a row for the base and one for each variant, says what was adjusted, and where the report is; asked
    again with --json, the same is data, and nothing is trained anew."""
    question = (
        "compare",
        recipe,
        "--vary",
        "kv_heads=4",
        "--equal",
        "parameters",
        "--seeds",
        1,
        "-o",
        tmp_path / "out",
    )
    ran = anyformer(*question)
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["base", "kv_heads=4"]
    assert any("to hold parameters equal" in line for line in lines)
    assert any("One seed" in line for line in lines)
    assert str(tmp_path / "out" / "report.html") in ran.err
    again = anyformer(*question, "--json")
    assert "2 of 2 runs are done by now" in again.err
    assert [row["name"] for row in json.loads(again.out)["rows"]] == ["base", "kv_heads=4"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "nothing is varied"),
        (("--vary", "positin=alibi"), "near it are position"),
        (("--vary", "position=rotary"), "varying 'position' changes nothing"),
        (("--vary", "position"), "write what and its values"),
        (("--vary", "position=alibi", "--equal", "luck"), "there are parameters, flops, time, steps"),
        (("--vary", "position=alibi", "--equal", "time"), "set training.minutes"),
        (("--vary", "position=alibi", "--set", "training.stepz=2"), "training.stepz"),
    ],
)
def test_a_mistake_is_one_sentence(anyformer, recipe: Path, tmp_path: Path, arguments, says: str) -> None:
    """Exit code 2, one line on stderr, nothing left behind."""
    ran = anyformer("compare", recipe, "-o", tmp_path / "out", *arguments)
    assert ran.code == 2 and says in ran.err and len(ran.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_is_not_there(anyformer, tmp_path: Path) -> None:
    """The path is named."""
    ran = anyformer("compare", tmp_path / "nope.toml", "--vary", "position=alibi")
    assert ran.code == 2 and "nope.toml" in ran.err
