"""The ground every spec stands on: frozen, strict, exact through JSON, with errors that name the path."""

from __future__ import annotations

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, StrictBool, ValidationError

from anyformer.errors import SpecError

# Numbers and flags are taken as they stand: "4", 4.0 and true are no 4, and "no" is not false.
PositiveInt = Annotated[int, Field(strict=True, gt=0)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
PositiveFloat = Annotated[float, Field(strict=True, gt=0)]
NonNegativeFloat = Annotated[float, Field(strict=True, ge=0)]
Probability = Annotated[float, Field(strict=True, ge=0, lt=1)]
Flag = StrictBool


class Part(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True):
    """A piece of a spec: immutable, comparable, hashable; an unknown key is an error that names its path."""

    def to_json(self) -> str:
        """This spec as JSON; `from_json` gives back an equal one."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote. Raises `SpecError` naming the path of whatever does not fit."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"the spec is not JSON: {error}") from None
        return cls.from_data(data)

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Build from plain data (dicts, lists, numbers). Raises `SpecError` naming the path of what does not fit."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(explain(error, cls.__name__)) from None

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return type(self).from_data({**{name: getattr(self, name) for name in type(self).model_fields}, **changes})


#: What pydantic says in words of Python.
TABLE = "input should be a table of keys"
SAID = {"model_type": TABLE, "dict_type": TABLE, "too_short": "input should not be empty"}


def explain(error: ValidationError, what: str) -> str:
    """The first complaint of a pydantic error as one sentence with its path."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"{what} has no key '{path}'; remove it or correct its spelling"
    message = SAID.get(first["type"], first["msg"].removeprefix("Value error, "))
    where = f" at '{path}'" if path else ""
    return f"{what} is wrong{where}: {message[0].lower()}{message[1:]}"
