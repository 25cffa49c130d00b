"""The pages of docs/, one for each concept: short, whole, true. What they link to exists, and what they show runs."""

from __future__ import annotations

import doctest
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anyformer import experiments
from anyformer.cli.app import app
from anyformer.training.recipe import read_recipe

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
#: Pages of another kind: longer ones, and tables.
OTHERS = {"index", "experiments", "families", "planning", "distributed", "cluster", "comparing"}
CONCEPTS = sorted(PAGES.keys() - OTHERS)
#: What is read in ninety seconds, at leisure.
MOST_WORDS = 350
FENCED = r"^```.*?^```$"


def fences(page: str, kind: str) -> list[str]:
    """The fenced blocks of a kind."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def without(page: str, *parts: str) -> str:
    """A page with nothing in place of what the patterns match."""
    for part in parts:
        page = re.sub(part, "", page, flags=re.MULTILINE | re.DOTALL)
    return page


def prose(page: str) -> str:
    """What a reader reads: without code, equations, what is generated, and the papers."""
    generated = r"^<!-- experiment .*?^<!-- /experiment [a-z-]+ -->$"
    read = without(page.split("\n## Paper\n")[0], FENCED, r"\$\$.*?\$\$", generated)
    return re.sub(r"\]\([^)]*\)|[`*|#]|---", " ", read)


def commands() -> list[str]:
    """Every command that a page shows in a block, once; those that stand in the README are run by its test."""
    lines = (line for name in CONCEPTS for block in fences(PAGES[name], "sh") for line in block.splitlines())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return [line for line in dict.fromkeys(lines) if f"| `{line}` |" not in readme]


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_page_is_whole_and_short(name: str) -> None:
    """A title, an equation, where it lives, how to switch it on, its paper; read in ninety seconds."""
    page = PAGES[name]
    headings = re.findall(r"^## (.+)$", without(page, FENCED), re.MULTILINE)
    assert page.startswith("# ")
    assert headings in (
        ["In the code", "Switch it on", "Paper"],
        ["In the code", "Switch it on", "Evidence", "Paper"],
    )
    assert "$$" in page, "no equation"
    sections = dict(section.split("\n", 1) for section in page.split("\n## ")[1:])
    assert "](../src/anyformer/" in sections["In the code"]
    assert any(fences(sections["Switch it on"], kind) for kind in ("sh", "toml", "pycon")), "nothing to try"
    assert "](https://" in sections["Paper"]
    words = len(prose(page).split())
    assert words <= MOST_WORDS, f"{words} words"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_what_a_page_links_to_is_there(name: str) -> None:
    """Every relative link is a file or a folder of the repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", without(PAGES[name], FENCED)):
        path = target.partition("#")[0]
        assert "://" in target or not path or (DOCS / path).exists(), target


def test_the_readme_leads_to_every_page() -> None:
    """From its table of concepts."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").split("## Where everything is")[1].split("\n## ")[0]
    missing = [name for name in CONCEPTS if f"](docs/{name}.md)" not in table]
    assert not missing, f"no row of the README's table links to {', '.join(missing)}"


def test_every_page_is_in_the_index() -> None:
    """Once."""
    listed = "\n".join(fences(PAGES["index"], r"\{toctree\}")).splitlines()
    names = [line for line in listed if line and not line.startswith(":")]
    assert sorted(names) == sorted(PAGES.keys() - {"index"})


@pytest.mark.parametrize("name", [name for name in CONCEPTS if fences(PAGES[name], "pycon")])
def test_what_a_page_shows_in_python_is_so(name: str) -> None:
    """Run line by line, it prints what stands there."""
    shown = "\n".join(fences(PAGES[name], "pycon"))
    test = doctest.DocTestParser().get_doctest(shown, {}, name, str(DOCS / f"{name}.md"), 0)
    report: list[str] = []
    doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("command", commands())
def test_a_command_runs(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, from the root of the repository; of a training, its recipe is read."""
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command)
    assert program == "anyformer"
    if arguments[0] == "train":
        recipe, *settings = arguments[1:]
        assert settings[::2] == ["--set"] * (len(settings) // 2)
        read_recipe(recipe, settings[1::2])
        return
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.output.strip()


@pytest.mark.parametrize("name", [name for name in CONCEPTS if fences(PAGES[name], "toml")])
def test_a_recipe_has_these_keys(name: str, tmp_path: Path) -> None:
    """Each fragment, put into a whole recipe, makes a recipe."""
    (tmp_path / "a-chat-model").mkdir()
    for fragment in fences(PAGES[name], "toml"):
        data: dict[str, Any] = tomllib.loads((ROOT / "recipes" / "laptop.toml").read_text(encoding="utf-8"))
        for key, value in tomllib.loads(fragment).items():
            data[key] = {**data.get(key, {}), **value} if isinstance(value, dict) and key != "model" else value
        if data["model"].keys() & {"from"}:
            data["model"]["from"] = str(tmp_path)
        read_recipe(data)


def test_verbs_that_pages_name_exist() -> None:
    """Every `anyformer VERB` within a sentence is a verb."""
    printed = CliRunner().invoke(app, ["--help"]).output
    for name, page in PAGES.items():
        for verb in re.findall(r"`anyformer (\w+)[ `]", page):
            assert f" {verb} " in printed, f"{name}.md names the verb '{verb}', which the command line has not"


def blocks() -> list[tuple[str, str]]:
    """(page, experiment) of each block of evidence."""
    return [
        (name, found)
        for name, page in PAGES.items()
        for found in re.findall(r"^<!-- experiment ([a-z-]+): ", page, re.MULTILINE)
    ]


def test_every_experiment_has_its_page() -> None:
    """One each, and no page names another; that a block is what its result says is held by test_docs.py."""
    named = [found for _, found in blocks()]
    missing = sorted(set(experiments.names()) - set(named))
    assert not missing, (
        f"no page has a block for {', '.join(missing)}: under '## Evidence' of its concept's page, write "
        f"'<!-- experiment NAME: written by `python docs/generate.py` -->' and '<!-- /experiment NAME -->'"
    )
    assert sorted(named) == experiments.names()
