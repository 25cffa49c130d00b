"""What was asked, kept in the directory of its answer: asked again, the same goes on; another question is refused.

OUT/asked.json                what was asked
OUT/texts/…/data/             the tokenised text, which runs share (hard links: no bytes of their own)
OUT/runs/position=alibi-seed1/    a run like any other, for each variant and seed
OUT/comparison.json, OUT/report.html
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyformer import checkpoints
from anyformer.disk import aside_of, write_json
from anyformer.errors import AnyformerError, ExperimentError
from anyformer.spec import Transformer
from anyformer.training import Recipe
from anyformer.training.objectives import OBJECTIVES
from anyformer.training.prepare import Text, described, model_spec, prepare_text
from anyformer.training.state import put_in_place, read_json
from anyformer.training.watching.progress import Display

ASKED, TEXTS = "asked.json", "texts"


@contextmanager
def asking(directory: Path, asked: Mapping[str, Any]) -> Iterator[None]:
    """Within, a directory is the answer's to this question. Raises `ExperimentError` where it holds anything else; what
    goes wrong before any run has begun leaves it free."""
    path, wanted = directory / ASKED, json.loads(json.dumps(asked))
    if path.exists():
        _check_same(directory, read_json(path), wanted)
    elif directory.exists() and (not directory.is_dir() or any(each.name != TEXTS for each in directory.iterdir())):
        raise ExperimentError(f"{directory} holds something else; choose another directory for the runs")
    else:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    try:
        yield
    except AnyformerError:
        if not any(directory.glob("runs/*/metrics.jsonl")):
            for name in ("runs", TEXTS):
                shutil.rmtree(directory / name, ignore_errors=True)
            path.unlink(missing_ok=True)
            if not any(directory.iterdir()):
                directory.rmdir()
        raise


def _check_same(directory: Path, before: Any, now: Any) -> None:
    for key in (*before, *now):
        if before.get(key) != now.get(key):
            was, is_now = (json.dumps(each.get(key)) for each in (before, now))
            said = f"{key} was {was} and is {is_now}" if len(was) + len(is_now) < 120 else f"its {key} is another"
            raise ExperimentError(
                f"{directory} holds runs that answer another question ({said}); choose another directory, or ask the "
                f"same to go on"
            )


def place_of(directory: Path, name: str, seed: int) -> Path:
    """Where the run of a variant and a seed is: named so that people find it; a name that no file can have, or that is
    very long, ends in a hash of itself."""
    plain = re.sub(r"[^\w.,=+-]+", "-", name)[:80]
    if plain != name:
        plain += f"-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return directory / "runs" / f"{plain}-seed{seed}"


class Texts:
    """The tokenised text of each recipe, made once for all recipes that read the same."""

    def __init__(self, directory: Path, display: Display) -> None:
        self.directory, self.display = directory / TEXTS, display
        self._found: dict[str, Text] = {}

    def of(self, recipe: Recipe) -> Text:
        """The tokenizer and the text of a recipe, which are made where they are missing."""
        place = self.place(recipe)
        if place.name not in self._found:
            self._found[place.name] = prepare_text(recipe, place, self.display)
        return self._found[place.name]

    def place(self, recipe: Recipe) -> Path:
        """Where that text is: a name of all that it follows from."""
        spec, settings = described(recipe), recipe.training
        reads = {
            "data": recipe.data.model_dump(mode="json"),
            "tokenizer": recipe.to_data().get("tokenizer"),
            "model": [recipe.model.source, spec.shape, spec.output.embeddings.segments > 1],
            "objective": [settings.objective, settings.sequence_length],
        }
        return self.directory / hashlib.sha256(json.dumps(reads, sort_keys=True).encode()).hexdigest()[:12]

    def give(self, recipe: Recipe) -> None:
        """Put the text where a run of this recipe will look for it."""
        data = recipe.run.directory / "data"
        if data.exists():
            return
        self.of(recipe)
        aside = aside_of(data)
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(self.place(recipe) / "data", aside, copy_function=_link)
        put_in_place(aside, data)

    def spec(self, recipe: Recipe) -> Transformer:
        """The spec that a recipe trains, with its vocabulary and its labels."""
        text = self.of(recipe)
        if recipe.model.source is not None:
            found = checkpoints.open(recipe.model.source).spec
        else:
            found = model_spec(recipe, text.tokenizer.vocabulary_size)
        return OBJECTIVES[recipe.training.objective].adapt(found, len(text.labels))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
