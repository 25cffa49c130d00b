"""anyformer embed gives the model's vectors, in the forms that programs and people want."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from anyformer.model import load

TEXTS = ["a cat", "a café", "the rain in Spain"]


@pytest.fixture
def vectors(talker: Path) -> torch.Tensor:
    return load(talker).embed(TEXTS)


def test_a_line_of_json_for_each_text(anyformer: Callable, talker: Path, vectors: torch.Tensor) -> None:
    """Texts as arguments give a line each, with the text and the vector that `Transformer.embed` gives."""
    rows = [json.loads(line) for line in anyformer("embed", talker, *TEXTS).out.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert torch.allclose(torch.tensor([row["embedding"] for row in rows]), vectors)


def test_one_array(anyformer: Callable, talker: Path) -> None:
    """--json gives all of it as one array."""
    lines = anyformer("embed", talker, *TEXTS).out.splitlines()
    assert json.loads(anyformer("embed", talker, *TEXTS, "--json").out) == [json.loads(line) for line in lines]


def test_texts_from_files(anyformer: Callable, command: list[str], talker: Path, tmp_path: Path) -> None:
    """A file, or standard input, has one text a line; empty lines are none; texts given as arguments come first."""
    (tmp_path / "texts").write_text("\n".join([*TEXTS[1:], "", ""]), encoding="utf-8")
    wanted = anyformer("embed", talker, *TEXTS).out
    assert anyformer("embed", talker, TEXTS[0], "--file", tmp_path / "texts").out == wanted
    arguments = [*command, "embed", str(talker), "-"]
    piped = subprocess.run(arguments, input="\n".join(TEXTS).encode(), capture_output=True, check=True)
    assert piped.stdout.decode() == wanted


def test_cosines(anyformer: Callable, talker: Path, vectors: torch.Tensor) -> None:
    """--compare gives the cosine of every pair, as a table or as JSON."""
    cosines = torch.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    said = json.loads(anyformer("embed", talker, *TEXTS, "--compare", "--json").out)
    assert torch.allclose(torch.tensor(said["cosines"]), cosines, atol=1e-6)
    table = anyformer("embed", talker, *TEXTS, "--compare").out
    assert f"{cosines[0, 1]:.3f}" in table and "2 a café" in table


def test_nothing_to_embed(anyformer: Callable, talker: Path) -> None:
    """Without any text there is a sentence, not an empty answer."""
    ran = anyformer("embed", talker)
    assert ran.code == 2 and "no text to embed" in ran.err
