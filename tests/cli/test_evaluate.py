"""anyformer evaluate reports what `inspection.evaluation` measures, over files in people's encodings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from anyformer.inspection.evaluation import evaluate
from anyformer.model import load

TEXT = "The naïve reader reads on.\n" * 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "one.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path / "one.txt"


def test_figures_are_the_measured_ones(anyformer: Callable, talker: Path, file: Path) -> None:
    """Loss, perplexity, bits per byte, tokens and bytes are those of `evaluate`, with the window and stride given."""
    measured = evaluate(load(talker), TEXT, window=64, stride=16)
    said = json.loads(anyformer("evaluate", talker, file, "--window", 64, "--stride", 16, "--json").out)
    assert said["files"][str(file)]["loss"] == said["loss"] == pytest.approx(measured.loss)
    assert said["perplexity"] == pytest.approx(math.exp(measured.loss))
    assert said["bits_per_byte"] == pytest.approx(measured.bits_per_byte)
    assert (said["tokens"], said["bytes"]) == (measured.tokens, len(TEXT.encode()))


def test_several_files_and_all_of_them(anyformer: Callable, talker: Path, file: Path) -> None:
    """Each file has its figures, and all together: the mean over tokens, not over files."""
    (file.parent / "two.txt").write_text("short", encoding="utf-8")
    said = json.loads(anyformer("evaluate", talker, file.parent, "--json").out)
    files = said["files"].values()
    assert [each["tokens"] for each in files] == [len(TEXT.encode()), 5]
    assert said["loss"] == pytest.approx(sum(each["loss"] * each["tokens"] for each in files) / said["tokens"])
    table = anyformer("evaluate", talker, file.parent).out
    assert f"{said['bits_per_byte']:.4f}" in table and "two.txt" in table and "all" in table


def test_encodings(anyformer: Callable, talker: Path, file: Path) -> None:
    """A file that is not UTF-8 is refused with its name and the byte, and read with --encoding; its bytes count as
    UTF-8, whatever the file's encoding."""
    file.write_text(TEXT, encoding="latin-1")
    refused = anyformer("evaluate", talker, file)
    assert refused.code == 2 and str(file) in refused.err and "offset 6" in refused.err and "--encoding" in refused.err
    said = json.loads(anyformer("evaluate", talker, file, "--encoding", "latin-1", "--json").out)
    assert said["bytes"] == len(TEXT.encode("utf-8"))


def test_windows_that_do_not_fit(anyformer: Callable, talker: Path, file: Path) -> None:
    """A stride beyond the window is refused in a sentence."""
    ran = anyformer("evaluate", talker, file, "--window", 8, "--stride", 9)
    assert ran.code == 2 and "stride of 9 does not fit a window of 8" in ran.err


def test_a_real_model_finds_english_likely(anyformer: Callable, smollm: Path, tmp_path: Path) -> None:
    """SmolLM2 needs under two bits a byte for plain English, where bytes drawn evenly need eight."""
    (tmp_path / "english.txt").write_text(
        "The sun rises in the east and sets in the west. Every morning the farmer gets up early to feed the animals, "
        "and in the evening he goes back to his house, where his wife has prepared dinner for the family.\n",
        encoding="utf-8",
    )
    assert json.loads(anyformer("evaluate", smollm, tmp_path, "--json").out)["bits_per_byte"] < 2
