"""How text is generated is asked for in the same words everywhere."""

from __future__ import annotations

import typer
from typer.main import get_command

from anyformer.cli.app import app
from anyformer.cli.settings import OPTIONS, SEARCH
from anyformer.generation import Settings

#: Settings that are ids, which nobody types; and one that has a say in JSON alone.
OF_FILES = {
    "bad_words",
    "suppress",
    "begin_suppress",
    "bos",
    "eos",
    "pad",
    "start",
    "forced_bos",
    "forced_eos",
    "logprobs",
}


def options_of(verb: str) -> set[str]:
    """What the command line takes for a verb, as settings are called."""
    command = get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    parameters = command.commands[verb].params
    assert all(f"--{each.name.replace('_', '-')}" in each.opts for each in parameters if each.name in OPTIONS)
    return {each.name for each in parameters if each.name is not None}


def test_every_setting_is_an_option() -> None:
    """By its own name, but for ids."""
    assert set(Settings.model_fields) == {*OPTIONS, *OF_FILES}


def test_every_verb_that_generates_has_them() -> None:
    """All of them; but for searches in a conversation, which goes on token by token."""
    assert set(OPTIONS) | {"draft", "logprobs"} <= options_of("generate")
    assert options_of("chat") & set(OPTIONS) == set(OPTIONS) - {*SEARCH, "batch_invariant"}
    assert options_of("evaluate") & set(OPTIONS) == set(OPTIONS) - {"answers"}
