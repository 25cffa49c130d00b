"""What is varied: keys of a recipe and parts of its model, in all combinations or one at a time, as recipes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any

from anyformer.comparing.swapping import SWAPS, swapped
from anyformer.errors import AnyformerError, ExperimentError
from anyformer.planning.starting import short
from anyformer.spec import Transformer
from anyformer.training.prepare import check_model, described, model_spec
from anyformer.training.recipe import Recipe, put, read_recipe

Vary = Mapping[str, Sequence[Any]] | Iterable[str]

#: What the row that all others are compared with is called.
BASE = "base"
#: Keys that say where a run lives and how it is followed: no weight depends on them.
FOLLOWING = frozenset(
    f"training.{name}" for name in ("checkpoint_every", "checkpoint_keep", "validate_every", "validate_tokens")
)
#: A vocabulary that no tokenizer has: of a model that takes its tokenizer's.
UNKNOWN = 1


@dataclass(frozen=True)
class Variant:
    """A recipe with its name, such as `position=alibi,kv_heads=1`, and what sets it apart from the base."""

    name: str
    settings: Mapping[str, Any]
    recipe: Recipe


def read_vary(vary: Vary) -> dict[str, tuple[Any, ...]]:
    """What to vary, and its values: from a mapping, or from texts such as `kv_heads=8,4,1`, whose values are TOML's
    (what is not TOML is a string). Raises `ExperimentError` for what is neither."""
    if isinstance(vary, str):
        vary = [vary]
    if not isinstance(vary, Mapping):
        read = [_read(text) for text in vary]
        vary = dict(read)
        if len(vary) < len(read):
            raise ExperimentError("a key is varied twice; give it once with all of its values: position=rotary,alibi")
    if not vary:
        raise ExperimentError("nothing is varied; say what: position=rotary,alibi")
    for name, values in vary.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ExperimentError(f"'{name}' has no list of values; give one such as {name}=[...]")
    return {name: tuple(values) for name, values in vary.items()}


def _read(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    if not equals or not name.strip() or not values.strip():
        raise ExperimentError(f"cannot vary '{text}'; write what and its values, such as position=rotary,alibi")
    return name.strip(), _values(values)


def _values(text: str) -> list[Any]:
    try:
        return tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        return [_value(part.strip()) for part in text.split(",") if part.strip()]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def variants(base: Recipe, vary: Mapping[str, Sequence[Any]], *, one_at_a_time: bool = False) -> list[Variant]:
    """The base, and behind it all combinations of values (or each value by itself) that differ from it.

    Raises `ExperimentError` where a name is unknown, a value makes no recipe, two variants are the same, or what is
    varied changes nothing.
    """
    keys = {name: key_of(name) for name in vary}
    same = _identity(base)
    alone = {name: [_varied(base, {name: value}, keys) for value in values] for name, values in vary.items()}
    for name, made in alone.items():
        if all(_identity(variant.recipe) == same for variant in made):
            said = " or ".join(_said(value) for value in vary[name])
            raise ExperimentError(f"varying '{name}' changes nothing: with {said} the recipe is what it was")
    if one_at_a_time or len(vary) == 1:
        made = [variant for each in alone.values() for variant in each]
    else:
        settings = (dict(zip(vary, values)) for values in product(*vary.values()))
        made = [_varied(base, each, keys) for each in settings]
    named = {same: Variant(BASE, {}, base)}
    for variant in made:
        identity = _identity(variant.recipe)
        other = named.get(identity)
        if other is None:
            named[identity] = variant
        elif other.name == BASE:
            named[identity] = Variant(BASE, variant.settings, base)
        elif other.recipe is not base:
            raise ExperimentError(f"{other.name} and {variant.name} are the same; leave one of them out")
    return list(named.values())


def _varied(base: Recipe, settings: Mapping[str, Any], keys: Mapping[str, str]) -> Variant:
    name = ",".join(f"{name}={_said(value)}" for name, value in settings.items())
    data = base.to_data()
    parts = {key: settings[key] for key in settings if keys[key] in SWAPS}
    try:
        for each, value in settings.items():
            if each not in parts:
                _put(data, base, keys[each], value)
        recipe = _with_parts(read_recipe(data), parts)
        check_model(recipe)
    except ExperimentError:
        raise
    except AnyformerError as error:
        raise ExperimentError(f"{name}: {error}") from None
    return Variant(name, dict(settings), recipe)


def _put(data: dict[str, Any], base: Recipe, key: str, value: Any) -> None:
    if key.startswith("model.spec.") and base.model.preset is not None:
        put(data, "model.spec", spec_data(model_spec(base, UNKNOWN)))
    put(data, key, value)


def _with_parts(recipe: Recipe, parts: Mapping[str, Any]) -> Recipe:
    """A recipe with parts of its model swapped; as it is where that changes none."""
    if not parts:
        return recipe
    if recipe.model.source is not None:
        raise ExperimentError(f"{next(iter(parts))} is fixed in the checkpoint of model.from; vary how it is trained")
    spec = found = model_spec(recipe, UNKNOWN)
    for name, value in parts.items():
        spec = swapped(spec, name, value, recipe.training.sequence_length)
    return recipe if spec == found else with_spec(recipe, spec)


def with_spec(recipe: Recipe, spec: Transformer) -> Recipe:
    """A recipe that trains a model of this spec, with fresh weights."""
    return recipe.replace(model=recipe.model.replace(preset=None, spec=spec_data(spec)))


def spec_data(spec: Transformer) -> dict[str, Any]:
    """A spec as a recipe has it: short, and without a vocabulary where that is to be the tokenizer's."""
    data = short(spec)
    for name in spec.stacks():
        if data[name]["embeddings"]["vocabulary"] == UNKNOWN:
            del data[name]["embeddings"]["vocabulary"]
    return data


def _identity(recipe: Recipe) -> str:
    """What a run's weights follow from, but for its seed: of two recipes that say the same in other words, the same."""
    data = recipe.to_data()
    training = {key: value for key, value in data["training"].items() if "dropout" not in key}
    rest = {key: data.get(key) for key in ("tokenizer", "data", "lora")}
    return json.dumps([training, rest, recipe.model.source, described(recipe).model_dump(mode="json")], sort_keys=True)


def key_of(name: str) -> str:
    """The part, or the dotted key of a recipe, that a name stands for: keys of [training], and `preset`, also without
    their table. Raises `ExperimentError` naming the nearest where it stands for nothing, or for nothing that changes
    what is trained."""
    if name in SWAPS:
        return name
    short = {key.rpartition(".")[2]: key for key in _keys() if key.startswith("training.")} | {"preset": "model.preset"}
    key = short.get(name, name)
    table, _, rest = key.partition(".")
    if table in ("run", "scale") or key in FOLLOWING:
        raise ExperimentError(
            f"varying '{name}' changes nothing: it says how a run is followed, not what is trained"
            + ("; seeds have an option of their own" if key == "run.seed" else "")
        )
    known = {*_keys()}
    if key not in known and f"{table}.{rest.partition('.')[0]}" not in _open_tables():
        names = [*SWAPS, *short, *sorted(known)]
        near = get_close_matches(name, names, 4, 0.5) or [*SWAPS]
        raise ExperimentError(f"there is no part or key '{name}' to vary; near it are {', '.join(near)}")
    return key


def _keys() -> Iterator[str]:
    """Every dotted key of a recipe's tables."""
    for name, field in Recipe.model_fields.items():
        inner = getattr(field.annotation, "model_fields", None)
        if name == "lora":
            yield from (f"lora.{key}" for key in ("rank", "alpha", "dropout", "targets"))
        elif inner is None:
            yield name
        else:
            yield from (f"{name}.{each.alias or key}" for key, each in inner.items())


def _open_tables() -> set[str]:
    """Keys that hold tables of their own, whose keys the recipe checks."""
    return {"model.spec", "data.columns", "tokenizer.train"}


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
