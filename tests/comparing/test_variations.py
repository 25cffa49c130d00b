"""What can be varied, and what is said of what cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from anyformer.comparing.variations import BASE, read_vary, variants
from anyformer.errors import ExperimentError
from anyformer.training import Recipe, read_recipe


@pytest.fixture
def base(recipe: Callable[..., dict[str, Any]]) -> Recipe:
    """The small recipe, on a preset: rotary positions, two key/value heads."""
    return read_recipe({**recipe(), "model": {"preset": "llama:tiny"}, "run": {"directory": "run"}})


def names(base: Recipe, *vary: str, one_at_a_time: bool = False) -> list[str]:
    return [variant.name for variant in variants(base, read_vary(vary), one_at_a_time=one_at_a_time)]


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("position=rotary,alibi", "position", ("rotary", "alibi")),
        ("kv_heads=8,4,1", "kv_heads", (8, 4, 1)),
        ("window=none, 64", "window", ("none", 64)),
        ("training.learning_rate=1e-3,0.01", "training.learning_rate", (1e-3, 0.01)),
        ("data.train=['a', 'b'],['c']", "data.train", (["a", "b"], ["c"])),
        ("from=a.b,c", "from", ("a.b", "c")),
    ],
)
def test_values_are_read_as_toml_or_as_they_stand(text: str, name: str, values: tuple[Any, ...]) -> None:
    """Numbers are numbers, lists are lists, words need no quotes."""
    assert read_vary([text]) == {name: values}


def test_the_base_is_a_variant_itself(base: Recipe) -> None:
    """A value that the base has is the base; one that it has not stands beside it."""
    assert names(base, "position=rotary,alibi") == [BASE, "position=alibi"]
    assert names(base, "learning_rate=0.02") == [BASE, "learning_rate=0.02"]


def test_several_are_combined_or_varied_one_at_a_time(base: Recipe) -> None:
    """All combinations; or each value by itself."""
    both = ("position=rotary,alibi", "kv_heads=2,1")
    combined = ["position=rotary,kv_heads=1", "position=alibi,kv_heads=2", "position=alibi,kv_heads=1"]
    assert names(base, *both) == [BASE, *combined]
    assert names(base, *both, one_at_a_time=True) == [BASE, "position=alibi", "kv_heads=1"]


def test_keys_of_training_need_no_table(base: Recipe) -> None:
    """`optimizer` is `training.optimizer`, and `preset` is `model.preset`."""
    assert variants(base, {"optimizer": ["muon"]})[1].recipe.training.optimizer == "muon"
    assert variants(base, {"preset": ["qwen3:tiny"]})[1].recipe.model.preset == "qwen3:tiny"


def test_a_spec_of_a_preset_can_be_reached_into(base: Recipe) -> None:
    """A dotted key of the spec makes a spec of the preset first."""
    made = variants(base, {"model.spec.decoder.depth": [3]})[1].recipe
    assert made.model.preset is None and made.model.spec is not None
    assert isinstance(made.model.spec, dict) and made.model.spec["decoder"]["depth"] == 3


def test_lengths_put_each_other_away(base: Recipe) -> None:
    """A recipe has one length: to vary tokens replaces its steps."""
    assert variants(base, {"tokens": [640]})[1].recipe.training.steps is None


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        ("positin=alibi", "no part or key 'positin' to vary; near it are position"),
        ("training.optimiser=muon", "near it are training.optimizer"),
        ("zzz=1", "near it are position, heads"),
        ("model.foo=1", "near it are model.from"),
        ("position", "write what and its values"),
        ("=alibi", "write what and its values"),
        ("position=", "write what and its values"),
        ("position=rotary", "varying 'position' changes nothing: with rotary"),
        ("norm=rmsnorm", "varying 'norm' changes nothing"),
        ("dropout=0.0", "varying 'dropout' changes nothing"),
        ("run.seed=1,2", "seeds have an option of their own"),
        ("run.samples=1,2", "how a run is followed"),
        ("validate_every=1,2", "how a run is followed"),
        ("position=alibi,rotari", "there is no 'rotari' here"),
        ("optimizer=sgd", "optimizer=sgd: the recipe is wrong at 'training.optimizer'"),
        ("objective=masked", "objective=masked: .* needs an encoder"),
        ("preset=llama:huge", "preset=llama:huge: "),
        ("kv_heads=3", "kv_heads=3 does not divide heads=4"),
        ("learning_rate=-1", "learning_rate=-1: "),
    ],
)
def test_what_cannot_be_varied_is_named(base: Recipe, vary: str, says: str) -> None:
    """One sentence: what, and the nearest or what there is."""
    with pytest.raises(ExperimentError, match=says):
        variants(base, read_vary([vary]))


def test_nothing_and_twice_are_refused(base: Recipe) -> None:
    """There is something to vary, once; two variants of one recipe are one too many."""
    with pytest.raises(ExperimentError, match="nothing is varied"):
        read_vary([])
    with pytest.raises(ExperimentError, match="varied twice"):
        read_vary(["depth=2", "depth=3"])
    with pytest.raises(ExperimentError, match="has no list of values"):
        read_vary({"depth": 3})  # type: ignore[dict-item]
    with pytest.raises(ExperimentError, match=r"depth=3 and model.spec.decoder.depth=3 are the same"):
        names(base, "depth=3", "model.spec.decoder.depth=3", one_at_a_time=True)


def test_a_checkpoint_has_its_parts(base: Recipe, tmp_path: Any) -> None:
    """What a model learned with is no longer to be swapped."""
    from anyformer import build, families, text

    model = build(families.llama("tiny"), seed=0)  # type: ignore[attr-defined]
    model.tokenizer = text.byte_level()
    model.save(tmp_path / "model")
    continued = read_recipe({**base.to_data(), "model": {"from": str(tmp_path / "model")}})
    with pytest.raises(ExperimentError, match="position is fixed in the checkpoint"):
        variants(continued, {"position": ["alibi"]})
    assert len(variants(continued, {"optimizer": ["muon"]})) == 2
