"""Where two specs differ: the paths, and what stands there in each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from anyformer.spec import Transformer
from anyformer.spec.base import Part

#: Fields that guide how a model is trained or planned and change nothing in what its weights compute.
GUIDANCE = frozenset({"initialization", "dropout", "balance", "context"})


class Difference(NamedTuple):
    """One field that two specs fill differently."""

    path: str
    first: Any
    second: Any

    def __str__(self) -> str:
        return f"{self.path} ({_shown(self.first)}, not {_shown(self.second)})"


def differences(first: Transformer, second: Transformer, *, guidance: bool = True) -> list[Difference]:
    """Every field in which two specs differ; without `guidance`, only those that change what the weights compute."""
    found = list(_differences("", first, second))
    return [item for item in found if guidance or not GUIDANCE & set(item.path.split("."))]


def _differences(path: str, first: Any, second: Any) -> Iterator[Difference]:
    if isinstance(first, Part) and type(first) is type(second):
        for name in type(first).model_fields:
            yield from _differences(f"{path}.{name}".lstrip("."), getattr(first, name), getattr(second, name))
    elif isinstance(first, tuple) and isinstance(second, tuple) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second)):
            yield from _differences(f"{path}.{index}", one, other)
    elif first != second:
        yield Difference(path, first, second)


def _shown(value: Any) -> str:
    return f"a {type(value).__name__}" if isinstance(value, Part) else repr(value)
