"""The families: one file each, found by being here. `families.llama("135m")` is the spec of that size.

A module of this package that defines a `Family` is a family; the others are what families are made of.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from anyformer.families.family import Family, Gguf, GgufSource
from anyformer.families.registry import find, named, preset, register, registered

__all__ = ["Family", "Gguf", "GgufSource", "find", "named", "preset", "register", "registered"]

_modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
_found = {value.name: value for module in _modules for value in vars(module).values() if isinstance(value, Family)}
for _name, _family in _found.items():
    globals()[_name] = register(_family)


def __getattr__(name: str) -> Family:
    """Tells type checkers that families are attributes, and readers which there are."""
    raise AttributeError(f"there is no family called '{name}'; there are {', '.join(registered())}")
