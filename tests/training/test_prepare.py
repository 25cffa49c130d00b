"""What a run begins with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from anyformer import families, text
from anyformer.model import build
from anyformer.spec.dropout import with_dropout
from anyformer.training import read_recipe
from anyformer.training.prepare import described, starting_model

Recipes = Callable[..., dict[str, Any]]


def test_dropout_is_the_recipes_where_it_says_so(recipe: Recipes) -> None:
    """In the spec of a fresh model, of a preset too; without the key, as the spec has it."""
    data = recipe(dropout=0.2)
    model = starting_model(read_recipe(data), text.byte_level(), torch.device("cpu"))
    plain = starting_model(read_recipe(recipe()), text.byte_level(), torch.device("cpu"))
    assert model.spec == with_dropout(plain.spec, 0.2) != plain.spec
    preset = {**data, "model": {"preset": "gpt2:tiny"}, "training": {**data["training"], "attention_dropout": 0.0}}
    found = described(read_recipe(preset))
    assert found.decoder is not None
    branch = found.decoder.pattern[0].branches[0]
    assert (found.decoder.embeddings.dropout, branch.dropout, branch.mixer.dropout) == (0.2, 0.2, 0.0)


def test_a_checkpoint_brings_its_dropout_along_unless_the_recipe_has_another(recipe: Recipes, tmp_path: Any) -> None:
    """With the same weights, and in the checkpoints of the run, which go on with it."""
    before = build(families.gpt2("tiny", vocab_size=300), seed=0)
    before.tokenizer = text.byte_level()
    before.save(tmp_path / "before")
    data = {**recipe(), "model": {"from": str(tmp_path / "before")}}
    model = starting_model(read_recipe(data), text.byte_level(), torch.device("cpu"))
    assert model.spec == before.spec and before.spec.output.embeddings.dropout == 0.1
    model = starting_model(read_recipe(data, ["training.dropout=0.0"]), text.byte_level(), torch.device("cpu"))
    assert model.spec == with_dropout(before.spec, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
