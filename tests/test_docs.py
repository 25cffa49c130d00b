"""What pages say of the families is what the code says: the README's table, and docs/families.md."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from anyformer import families
from anyformer.cli.app import app
from anyformer.families.difference import differences
from anyformer.planning import count

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    """docs/generate.py."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        return importlib.import_module("generate")
    finally:
        sys.path.pop(0)


def test_pages_are_up_to_date(generate: ModuleType) -> None:
    """Generated again they read the same; if not: python docs/generate.py."""
    for path, text in generate.pages():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date; run: python docs/generate.py"


def test_the_readme_has_the_table_of_the_command(generate: ModuleType) -> None:
    """Every family's row has its sizes, what it reads and its paper, and what the command prints as figures."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    printed = CliRunner().invoke(app, ["list", "families"]).output
    for name, family in generate.known().items():
        (row,) = re.findall(rf"^\| `{name}` \| (.*) \|$", readme, re.MULTILINE)
        title, sizes, reads, gguf, *figures = (cell.strip() for cell in row.split("|"))
        assert title == f"[{family.title}]({family.paper})"
        assert (sizes, reads) == (", ".join(family.presets), ", ".join(family.model_types))
        assert gguf == (", ".join(family.gguf.architectures) if family.gguf is not None else "")
        (line,) = re.findall(rf"^{name} +{re.escape(family.title)} .*$", printed, re.MULTILINE)
        wanted = " ".join(figures).split()
        assert line.split()[len(line.split()) - len(wanted) :] == wanted


def test_every_family_has_its_section(generate: ModuleType) -> None:
    """With its lines, the parameters of every size, and a nearest relative, of which a link leads to the section."""
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    sections = dict(section.split("\n", 1) for section in page.split("\n## ")[1:])
    for name, family in generate.known().items():
        section = sections[family.title]
        file = ROOT / "src" / "anyformer" / "families" / f"{name}.py"
        lines = len(file.read_text(encoding="utf-8").splitlines())
        assert f"families/{name}.py) | {lines} |" in sections["Lines"]
        for size in family.presets:
            assert re.search(rf"^\| {re.escape(size)} \| {count(family(size)):,}[ |(]", section, re.MULTILINE), size
        (link,) = re.findall(r"Nearest relative: \[.*?\]\(#(.*?)\)", section)
        assert link in {generate._anchor(other) for other in generate.known().values() if other is not family}


def test_differences_are_those_of_the_specs(generate: ModuleType) -> None:
    """Specs that differ in nothing but numbers do not differ; each part that does is named, with both values, once for
    all layers that it is in, or with how many kinds of layer have it."""
    llama, mistral = families.llama("135m"), families.mistral("7b")
    assert generate.compared(families.llama("135m"), families.llama("tiny", vocab_size=9)) == []
    assert [tuple(each) for each in generate.compared(mistral, llama)] == [("layer.attention.window", "yes", "none", 1)]
    assert differences(mistral, llama, guidance=False) != []
    qwen = families.qwen3("8b")
    assert [each[:3] for each in generate.compared(llama, qwen)] == [("layer.attention.query_key_norm", "none", "rms")]
    windows = [each for each in generate.compared(families.gemma2("2b"), qwen) if "window" in each.part]
    assert [each.part for each in windows] == ["layer.attention.window (in 1 of 2 kinds of layer)"]


def test_what_differs_alike_in_both_stacks_is_said_once(generate: ModuleType) -> None:
    """A part of encoder and decoder is one difference; one of the decoder alone says so."""
    found = [each.part for each in generate.compared(families.bart("base"), families.t5("small"))]
    assert "embeddings.position" in found and "decoder.layer.cross_attention.bias" in found
    assert not any(part.startswith("encoder.embeddings") for part in found)
