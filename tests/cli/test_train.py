"""anyformer train: from texts or a recipe to a run directory that every other verb reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anyformer import training

SMALL = ("--set", "training.batch_tokens=256", "--set", "training.sequence_length=64")
RECIPE = """
[run]
directory = "{run}"
[model]
preset = "llama:tiny"
[data]
train = "{text}"
[training]
steps = 3
batch_tokens = 256
sequence_length = 64
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and that was that\n" * 60, encoding="utf-8")
    return tmp_path / "text.txt"


def test_texts_become_a_model(anyformer: Callable, text: Path, tmp_path: Path) -> None:
    """Texts alone train the small preset on bytes; what comes out generates, and the last line says how."""
    run = tmp_path / "run"
    ran = anyformer("train", text, "--out", run, "--steps", 3, *SMALL)
    assert ran.code == 0 and ran.out == ""
    assert "3 of 3 steps" in ran.err and f"anyformer generate {run}" in ran.err.splitlines()[-1]
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 3
    assert anyformer("generate", run, "the", "-n", 3).code == 0
    assert "2 layers, 128 wide" in anyformer("inspect", run).out


def test_an_encoder_is_no_writer(anyformer: Callable, text: Path, tmp_path: Path) -> None:
    """The last line names a verb that the model can have."""
    run = tmp_path / "run"
    encoder = ("--set", "model.preset=bert:tiny", "--set", "training.objective=masked")
    ran = anyformer("train", text, "--out", run, "--steps", 2, *SMALL, *encoder)
    assert ran.code == 0 and f"anyformer embed {run}" in ran.err.splitlines()[-1]
    assert anyformer("embed", run, "the cat").code == 0


def test_a_recipe_with_changes(anyformer: Callable, text: Path, tmp_path: Path) -> None:
    """A recipe runs as it stands but for what --set and the options change; --json tells the result."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE.format(run=tmp_path / "run", text=text), encoding="utf-8")
    said = json.loads(anyformer("train", recipe, "--steps", 2, "--set", "run.seed=5", "--json").out)
    assert (said["step"], said["finished"], said["directory"]) == (2, True, str(tmp_path / "run"))
    assert said["tokens"] == 512 and said["validation_bits_per_byte"] > 0
    kept = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["recipe"]
    assert kept["run"]["seed"] == 5 and kept["training"]["steps"] == 2


def test_a_run_is_resumed_as_it_is(anyformer: Callable, text: Path, tmp_path: Path) -> None:
    """A directory that holds a run is refused with the command that goes on with it, which works, without settings."""
    run = tmp_path / "run"
    assert anyformer("train", text, "--out", run, "--steps", 2, *SMALL).code == 0
    refused = anyformer("train", text, "--out", run, "--steps", 2, *SMALL)
    assert refused.code == 2 and f"anyformer train --resume {run}" in refused.err
    assert anyformer("train", "--resume", run).code == 0
    changed = anyformer("train", "--resume", run, "--steps", 9)
    assert changed.code == 2 and "leave out recipe, texts and settings" in changed.err


def test_a_run_is_reported_on(anyformer: Callable, text: Path, tmp_path: Path) -> None:
    """At its end, and whenever it is asked for, from what is there then; in a sentence where there is no run."""
    run = tmp_path / "run"
    assert f"the report is {run / 'report.html'}" in anyformer("train", text, "--out", run, "--steps", 2, *SMALL).err
    (run / "report.html").unlink()
    assert anyformer("train", "--report", run).err == f"the report is {run / 'report.html'}\n"
    assert "finished · 2 steps" in (run / "report.html").read_text(encoding="utf-8")
    assert json.loads(anyformer("train", "--report", run, "--json").out) == {"report": str(run / "report.html")}
    refused = anyformer("train", "--report", run, "--steps", 3)
    assert refused.code == 2 and "--report looks at a run as it is" in refused.err
    missing = anyformer("train", "--report", tmp_path)
    assert missing.code == 2 and "holds no run to report on" in missing.err


def test_continuing_from_a_checkpoint(anyformer: Callable, text: Path, talker: Path, tmp_path: Path) -> None:
    """--from starts from a checkpoint's weights and takes its tokenizer, in place of the preset."""
    ran = anyformer("train", text, "--from", talker, "--out", tmp_path / "run", "--steps", 1, *SMALL)
    assert ran.code == 0
    kept = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["recipe"]
    assert kept["model"] == {"from": str(talker)}


def test_an_interrupted_run_leaves_with_130(anyformer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that saved and stopped before its end is told by the exit code of an interrupt, and offers no model."""
    stopped = training.Result(Path("run"), 3, 9, 768, 1.5, 0, 5.0, None, None, finished=False)
    monkeypatch.setattr(training, "train", lambda *_, **__: stopped)
    ran = anyformer("train", "recipe.toml")
    assert ran.code == 130 and ran.err == "3 of 9 steps · 768 tokens · 1.5 s · loss 5.0000\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("a.toml", "b.txt"), "either one recipe or texts"),
        (("nowhere.toml",), "cannot read the recipe nowhere.toml"),
        (("nowhere.txt", "--steps", "1"), "nothing found at"),
        (("nowhere.txt", "--set", "training.stepz=1"), "stepz"),
        (("nowhere.txt", "--set", "steps"), "write key=value"),
        (("nowhere.txt", "--preset", "llama:huge"), "llama has no size 'huge'"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], sentence: str, anyformer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipes and texts that cannot be used are refused in a sentence, and leave no run behind."""
    monkeypatch.chdir(tmp_path)
    ran = anyformer("train", *arguments)
    assert ran.code == 2 and sentence in ran.err
    assert not list(tmp_path.iterdir())
