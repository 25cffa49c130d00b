"""Recipes: strict, overridable, standing for themselves."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from anyformer import families, text
from anyformer.errors import TrainingError
from anyformer.model import build
from anyformer.training import Recipe, read_recipe
from anyformer.training.prepare import check_model

MINIMAL = {
    "run": {"directory": "runs/a"},
    "model": {"preset": "llama:tiny"},
    "data": {"train": "texts"},
    "training": {"steps": 10},
}

TOML = """
tokenizer = {train = {vocabulary = 512}}

[run]
directory = "runs/a"
seed = 7

[model]
from = "checkpoint"

[data]
train = ["a.txt", "b/*.txt"]
validation = "c.txt"
encoding = "latin-1"

[training]
objective = "causal"
tokens = 1_000_000
batch_tokens = 2048
micro_batch_tokens = 512
sequence_length = 128
learning_rate = 3e-4
schedule = "linear"
warmup = 20
precision = "bfloat16"
"""


def changed(path: str, value: Any) -> dict[str, Any]:
    """The minimal recipe with one key set."""
    recipe = json.loads(json.dumps(MINIMAL))
    table, _, key = path.rpartition(".")
    (recipe[table] if table else recipe)[key] = value
    return recipe


def test_a_toml_recipe_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strings and lists both do where there may be several; paths become absolute."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(TOML.replace("tokenizer = {train = {vocabulary = 512}}", ""))
    recipe = read_recipe("r.toml")
    assert recipe.model.source == "checkpoint" and recipe.run.seed == 7
    assert recipe.data.train == (str(tmp_path / "a.txt"), str(tmp_path / "b/*.txt"))
    assert recipe.data.validation == (str(tmp_path / "c.txt"),) and recipe.data.encoding == ("latin-1",)
    assert recipe.training.tokens == 1_000_000 and recipe.training.warmup == 20


def test_a_recipe_survives_being_written_down() -> None:
    """What run.json holds makes the same recipe."""
    recipe = read_recipe(changed("tokenizer", {"train": {"vocabulary": 300}}))
    assert read_recipe(json.loads(json.dumps(recipe.to_data()))) == recipe
    assert read_recipe(recipe) == recipe and isinstance(recipe, Recipe)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("training.stepz", 5, "no key 'training.stepz'"),
        ("colour", "red", "no key 'colour'"),
        ("training.steps", "many", r"wrong at 'training.steps'"),
        ("training.steps", 0, r"wrong at 'training.steps'"),
        ("training.minutes", 3, "exactly one of steps, tokens, flops, minutes is needed, not steps and minutes"),
        ("model.from", "x", "exactly one of preset, spec, from is needed, not preset and from"),
        ("training.objective", "psychic", r"'psychic' is not there \(yet\); this version has causal, prefix, masked"),
        ("training.optimizer", "lion", r"'lion' is not there \(yet\); this version has adamw, muon"),
        ("training.schedule", "wsd", r"this version has constant, linear, cosine"),
        ("training.precision", "float16", r"wrong at 'training.precision'"),
        ("training.batch_tokens", 1000, "batch_tokens=1000 is not a multiple of sequence_length=256"),
        ("training.micro_batch_tokens", 100, "micro_batch_tokens=100 is not a multiple"),
        ("training.warmup", 1.5, r"wrong at 'training.warmup': this is a whole number, or a share below 1"),
        ("training.checkpoint_keep", 1, r"wrong at 'training.checkpoint_keep'"),
        ("data.train", [], r"wrong at 'data.train': input should not be empty"),
        ("training", 3, r"wrong at 'training': input should be a table of keys"),
        ("data.held_out", 1.5, r"wrong at 'data.held_out': this is a whole number, or a share"),
        ("data.held_out", float("nan"), r"wrong at 'data.held_out': this is a whole number, or a share"),
        ("data.encoding", [], r"wrong at 'data.encoding'"),
        ("run.seed", 2**63, r"wrong at 'run.seed': input should be less than 9223372036854775808"),
        ("data.held_out", 0, r"wrong at 'data.held_out': input should be greater than 0"),
        ("data.columns", {"source": -1}, r"wrong at 'data.columns.source"),
        ("model.preset", None, "exactly one of preset, spec, from is needed, not none"),
    ],
)
def test_what_does_not_fit_is_named_with_its_path(path: str, value: Any, complaint: str) -> None:
    """Unknown keys, wrong kinds, impossible combinations, and what is not there yet."""
    with pytest.raises(TrainingError, match=complaint):
        read_recipe(changed(path, value))


def test_a_checkpoint_comes_with_its_own_tokenizer(tmp_path: Path) -> None:
    """Another one would make nonsense of its weights."""
    (tmp_path / "r.toml").write_text(TOML)
    with pytest.raises(TrainingError, match="leave out the key 'tokenizer'"):
        read_recipe(tmp_path / "r.toml")


def test_overrides_are_toml_values_or_plain_strings() -> None:
    """Numbers, lists and tables are what they look like; what is no TOML is a string."""
    recipe = read_recipe(
        MINIMAL,
        [
            "run.seed=3",
            "run.directory=runs/other",
            'data.train=["/a", "/b"]',
            "tokenizer={train = {vocabulary = 400}}",
            "training.learning_rate=2e-3",
        ],
    )
    assert recipe.run.seed == 3 and recipe.run.directory == Path("runs/other")
    assert recipe.data.train == ("/a", "/b") and recipe.training.learning_rate == 2e-3
    assert recipe.to_data()["tokenizer"] == {"train": {"vocabulary": 400}}
    assert "seed" not in MINIMAL["run"]


def test_what_is_held_out_is_a_share_or_a_number_and_columns_are_names_or_numbers() -> None:
    """And stay what they are on the way through a run's own file."""
    recipe = read_recipe(MINIMAL, ["data.held_out=1000", 'data.columns={source = 1, target = "de"}'])
    again = read_recipe(json.loads(json.dumps(recipe.to_data()))).data
    assert again.held_out == 1000 and isinstance(again.held_out, int)
    assert again.columns == {"source": 1, "target": "de"} and isinstance(again.columns["source"], int)
    assert read_recipe(MINIMAL, ["data.held_out=0.25"]).data.held_out == 0.25


def test_an_override_puts_its_alternatives_away() -> None:
    """A recipe of minutes can be cut to a few steps, a preset exchanged for a spec."""
    recipe = read_recipe(MINIMAL, ["training.minutes=3", "model.spec={decoder = {}}"])
    assert (recipe.training.steps, recipe.training.minutes) == (None, 3.0)
    assert (recipe.model.preset, recipe.model.spec) == (None, {"decoder": {}})


@pytest.mark.parametrize("override", ["training.steps", "=3", "training.steps.more=3"])
def test_an_override_that_makes_no_sense_is_named(override: str) -> None:
    """Not a key and a value, or a key below a value."""
    with pytest.raises(TrainingError, match="cannot set"):
        read_recipe(MINIMAL, [override])


def test_a_spec_file_is_read_into_the_recipe(tmp_path: Path) -> None:
    """A run must not depend on a file that may change before it is resumed."""
    (tmp_path / "spec.json").write_text('{"decoder": {"dim": 8}}')
    recipe = read_recipe(MINIMAL, [f"model.spec={tmp_path / 'spec.json'}"])
    assert recipe.model.spec == {"decoder": {"dim": 8}}
    with pytest.raises(TrainingError, match=r"cannot read model.spec: .*other.json"):
        read_recipe(MINIMAL, [f"model.spec={tmp_path / 'other.json'}"])
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(TrainingError, match="is not JSON"):
        read_recipe(MINIMAL, [f"model.spec={tmp_path / 'spec.json'}"])


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("*.toml")), ids=lambda path: path.stem
)
def test_the_recipes_that_come_along_are_whole(path: Path, tmp_path: Path) -> None:
    """Each reads, and its model can have its objective; what continues one, from any checkpoint."""
    overrides = []
    if "from" in tomllib.loads(path.read_text())["model"]:
        model = build(families.llama("tiny", vocab_size=257), seed=0)
        model.tokenizer = text.byte_level()
        model.save(tmp_path)
        overrides = [f'model.from="{tmp_path}"']
    check_model(read_recipe(path, overrides))


def test_a_recipe_that_is_missing_or_no_toml_is_named(tmp_path: Path) -> None:
    """One sentence with the path."""
    with pytest.raises(TrainingError, match=r"cannot read the recipe .*none.toml"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "r.toml").write_text("[run")
    with pytest.raises(TrainingError, match=r"r.toml is not TOML"):
        read_recipe(tmp_path / "r.toml")
