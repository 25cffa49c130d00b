"""Chat templates: messages in, the text that a model was trained on out.

A template is a program that came with somebody's weights, so it runs in jinja2's immutable sandbox, with the functions
that such templates expect (`raise_exception`, `strftime_now`, a `tojson` that escapes nothing) and no others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from anyformer.errors import TextError

if TYPE_CHECKING:
    from jinja2 import Template


#: The template of a model that has none yet, with the tokens that begin and end a turn.
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text of a conversation. `variables` are what the template sees besides `messages`.

    Raises `TextError` when the template is no valid template or refuses these messages, with its own words.
    """
    compiled = _compiled(template)
    try:
        return compiled.render({"tools": None, "documents": None, **variables, "messages": messages})
    # Whatever goes wrong while it runs is the template's doing or the messages'; both are input.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, _Refusal) and (names := _missing(template, compiled, variables)):
            reason += f"; it was not given: {', '.join(names)}"
        raise TextError(f"the chat template refuses these messages: {reason}") from error


class _Refusal(Exception):
    """A template's own words for what it does not take."""


def _missing(template: str, compiled: Template, variables: Mapping[str, Any]) -> list[str]:
    """The variables that a template reads and has no value of."""
    from jinja2 import meta

    read = meta.find_undeclared_variables(compiled.environment.parse(template))
    return sorted(name for name in read - {"messages"} if variables.get(name) is None)


@lru_cache(maxsize=16)
def _compiled(template: str) -> Template:
    # Imported here because only conversations need it.
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks what the assistant wrote, for training; rendering passes it through."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> NoReturn:
        raise _Refusal(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except TemplateError as error:
        raise TextError(f"the chat template is not valid: {error}") from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
