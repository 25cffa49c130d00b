"""All families, those of this package and those that others install under the entry point `anyformer.families`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from anyformer.errors import SpecError
from anyformer.families.family import Family
from anyformer.spec import Transformer

_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Make a family known by its name, model types and class names; gives it back.

    Raises `SpecError` if another family has one of them already. A family in another's format makes no claim to them.
    """
    rivals = [other for other in _FAMILIES.values() if other.format is None and family.format is None]
    for other in rivals:
        for what in ("model_types", "architectures"):
            if both := sorted(set(getattr(family, what)) & set(getattr(other, what))):
                raise SpecError(f"the families {family.name} and {other.name} both claim {', '.join(both)}")
    if family.name in _FAMILIES:
        raise SpecError(f"there is a family called {family.name} already")
    _FAMILIES[family.name] = family
    return family


def registered() -> dict[str, Family]:
    """Every family by its name, in alphabetical order."""
    _load_entry_points()
    return dict(sorted(_FAMILIES.items()))


def named(name: str) -> Family:
    """The family of that name. Raises `SpecError` naming those there are."""
    families = registered()
    if name not in families:
        raise SpecError(f"there is no family called '{name}'; there are {', '.join(families)}")
    return families[name]


def find(model_type: str) -> Family:
    """The family of a config.json's `model_type`. Raises `SpecError` naming those there are."""
    families = _claimed("model_types")
    if not isinstance(model_type, str) or model_type not in families:
        raise SpecError(f"no family reads the model type {model_type!r}; known are {', '.join(families)}")
    return families[model_type]


def of(attributes: Mapping[str, Any], where: str = "config.json") -> Family:
    """The family of a whole config.json: by its model type, in old files without one by the architecture.

    Raises `SpecError` naming those there are.
    """
    if (model_type := attributes.get("model_type")) is not None:
        try:
            return find(model_type)
        except SpecError as error:
            raise SpecError(f"{where}: {error}") from None
    names = attributes.get("architectures")
    architecture = str(names[0]) if isinstance(names, list) and names else None
    if architecture is None:
        known = ", ".join(_claimed("model_types"))
        raise SpecError(f"{where}: it names no model_type and no architecture; add a model_type, one of {known}")
    families = _claimed("architectures")
    if architecture not in families:
        raise SpecError(f"{where}: unknown: {architecture!r}; known architectures are {', '.join(families)}")
    return families[architecture]


def _claimed(what: str) -> dict[str, Family]:
    """The family that reads each of the `model_types`, or `architectures`, that there are."""
    return {
        known: family for family in registered().values() if family.format is None for known in getattr(family, what)
    }


def of_gguf(architecture: str, metadata: Mapping[str, Any], where: str) -> Family:
    """The family of a GGUF file's `general.architecture`. Raises `SpecError` naming those there are."""
    families = [(family.gguf, family) for family in registered().values() if family.gguf is not None]
    fitting = [
        (len(gguf.requires), family)
        for gguf, family in families
        if architecture in gguf.architectures and all(metadata.get(f"{architecture}.{key}") for key in gguf.requires)
    ]
    if not fitting:
        known = ", ".join(sorted({name for gguf, _ in families for name in gguf.architectures}))
        raise SpecError(f"{where}: no family reads the GGUF architecture {architecture!r}; known are {known}")
    return max(fitting, key=lambda pair: pair[0])[1]


def preset(reference: str) -> Transformer | None:
    """The spec that `family:size` names, as in `llama:135m`; None if the reference does not begin with a family.

    Raises `SpecError` naming the family's sizes if it has no such size.
    """
    name, separator, size = reference.partition(":")
    return registered()[name](size) if separator and name in registered() else None


@cache
def _load_entry_points() -> None:
    for entry_point in metadata.entry_points(group="anyformer.families"):
        try:
            loaded = entry_point.load()
        except Exception as error:
            warnings.warn(f"the family '{entry_point.value}' is left out, its import failed: {error}", stacklevel=2)
            continue
        if isinstance(loaded, Family) and loaded.name not in _FAMILIES:
            register(loaded)
