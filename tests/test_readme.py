"""The README tells the truth: what it links to exists, and what it says to run runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyformer.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def rows() -> list[list[str]]:
    """The rows of the concept table: concept, where, how."""
    section = README.split("## Where everything is")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("|")
    ]
    return cells[2:]


def links() -> list[str]:
    """Every relative link of the page."""
    return [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]


def test_there_is_a_row_for_each_concept() -> None:
    """The table has not been emptied, and each row is whole."""
    assert len(rows()) >= 20
    assert all(len(row) == 3 and all(row) for row in rows())


@pytest.mark.parametrize("target", sorted(set(links())))
def test_links_resolve(target: str) -> None:
    """Every file or folder that the page links to is there."""
    assert (ROOT / target).exists(), f"README links to {target}, which is not there"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_every_concept_has_a_home(row: list[str]) -> None:
    """Each row's middle column links to something."""
    assert re.search(r"\]\(src/anyformer/[^)]+\)", row[1]), f"{row[0]} says not where it lives"


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_what_a_row_says_to_run_runs(row: list[str]) -> None:
    """Each row's command: anyformer's own are run, those of other tools point to files that exist."""
    command = re.fullmatch(r"`(.+)`", row[2])
    assert command, f"{row[0]} has no command"
    program, *arguments = shlex.split(command[1])
    if program == "anyformer":
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, f"{command[1]}: {result.output}"
        assert result.output.strip()
    else:
        assert program in ("pytest", "python")
        assert (ROOT / arguments[0]).exists(), f"{command[1]}: no such file"


def test_commands_named_on_the_page_exist() -> None:
    """Every `anyformer VERB` in the page's examples is a verb."""
    named = set(re.findall(r"^anyformer (\w+)", README, re.MULTILINE))
    help_text = CliRunner().invoke(app, ["--help"]).output
    assert named
    for verb in named:
        assert verb in help_text, f"README names the verb '{verb}', which the command line has not"
