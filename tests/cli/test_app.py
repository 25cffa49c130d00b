"""The command line as a whole: help at once, errors in one sentence, exit codes that mean something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from anyformer.cli import app

VERBS = ("train", "generate", "chat", "evaluate", "embed", "inspect", "convert", "verify", "list")


def modules_after(*arguments: str) -> set[str]:
    """What a new process has imported once it has run a command."""
    code = (
        "import sys\nfrom anyformer.cli import main\n"
        f"try:\n    main({list(arguments)!r})\nexcept SystemExit as exit:\n    assert not exit.code, exit.code\n"
        "print('modules:', *sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return set(out.split("modules:")[1].split())


@pytest.mark.parametrize(
    "arguments", [("--help",), ("train", "--help"), ("verify", "--help"), ("list",), ("inspect", "llama:8b")]
)
def test_what_needs_no_weights_waits_for_nothing(arguments: tuple[str, ...]) -> None:
    """Help, lists and drawings of presets import neither torch nor numpy nor tokenizers."""
    assert not modules_after(*arguments) & {"torch", "numpy", "tokenizers", "transformers"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, anyformer: Callable) -> None:
    """Each verb is in the help, with what it does, and has a help of its own with --debug in it."""
    assert f" {verb} " in anyformer("--help").out
    own = anyformer(verb, "--help")
    assert own.code == 0 and f"anyformer {verb}" in own.out and "--debug" in own.out


def test_version(anyformer: Callable) -> None:
    """--version prints the version of the package."""
    from anyformer import __version__

    assert anyformer("--version").out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("inspect", "nowhere"), "there is no file or directory 'nowhere'"),
        (("inspect", "llama:9t"), "llama has no size '9t'; there are tiny, "),
        (("generate", "llama:tiny", "x", "--device", "abacus"), "there is no device 'abacus' here"),
        (("generate", "llama:tiny", "x", "--top-p", "0"), "'top_p'"),
        (("evaluate", "llama:tiny", "nowhere.txt"), "nothing found at 'nowhere.txt'"),
        (("train",), "there is nothing to train on"),
    ],
)
def test_bad_input_gets_one_sentence(arguments: tuple[str, ...], sentence: str, anyformer: Callable) -> None:
    """What cannot be used is said in one line on stderr, with exit code 2, nothing on stdout and no traceback."""
    ran = anyformer(*arguments)
    last = ran.err.splitlines()[-1]
    assert (ran.code, ran.out) == (2, "")
    assert last.startswith("anyformer: ") and sentence in last
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("inspect",), ("list", "nonsense"), ("generate", "m", "x", "-n", "0")]
)
def test_wrong_usage_leaves_with_2(arguments: tuple[str, ...], anyformer: Callable) -> None:
    """Unknown verbs, missing arguments and values out of range are usage errors."""
    ran = anyformer(*arguments)
    assert ran.code == 2 and "Usage:" in ran.err


def test_debug_shows_where_an_error_came_from(anyformer: Callable) -> None:
    """--debug adds the traceback to the sentence."""
    ran = anyformer("inspect", "nowhere", "--debug")
    assert ran.code == 2 and "Traceback" in ran.err
    assert ran.err.splitlines()[-1].startswith("anyformer: there is no file")


def fail(error: BaseException) -> Callable[..., None]:
    def raiser(*_: object, **__: object) -> None:
        raise error

    return raiser


def test_a_bug_is_called_one(anyformer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What no input should cause is said to be a bug, with what it was, and exit code 70."""
    monkeypatch.setattr("anyformer.planning.describe", fail(KeyError("lost")))
    ran = anyformer("inspect", "llama:tiny")
    assert ran.code == app.BUG == 70
    assert "this is a bug" in ran.err and "KeyError: 'lost'" in ran.err and "--debug" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_what_the_system_refuses_is_bad_input(anyformer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not be touched is named, with the system's reason."""
    monkeypatch.setattr("anyformer.planning.describe", fail(PermissionError(13, "Permission denied", "/there")))
    ran = anyformer("inspect", "llama:tiny")
    assert (ran.code, ran.err) == (2, "anyformer: /there: Permission denied\n")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")]
)
def test_memory_that_runs_out_is_no_bug(error: Exception, anyformer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence with what to do."""
    monkeypatch.setattr("anyformer.planning.describe", fail(error))
    ran = anyformer("inspect", "llama:tiny")
    assert ran.code == app.BAD_INPUT
    assert ran.err.startswith("anyformer: there was not enough memory; give less at a time")


@pytest.mark.parametrize("debug", [False, True])
def test_a_warning_is_a_sentence(debug: bool) -> None:
    """Without the line of code that gave it, which --debug shows."""
    code = (
        "import warnings\nfrom anyformer.cli import app\n"
        "app.app = lambda args, prog_name: warnings.warn('slower today')\n"
        f"app.main({['list', '--debug'] if debug else ['list']})"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert ("UserWarning" in said) if debug else said == "slower today\n"


def test_ctrl_c_leaves_with_130(anyformer: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt ends a command quietly with the code of SIGINT."""
    monkeypatch.setattr("anyformer.planning.describe", fail(KeyboardInterrupt()))
    ran = anyformer("inspect", "llama:tiny")
    assert ran.code == 130 and "Traceback" not in ran.err


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """Output piped into a program that stops reading leaves no noise."""
    code = "from anyformer.cli import main; main(['list', 'presets', '--json'])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_terminal_without_the_characters_gets_question_marks(command: list[str]) -> None:
    """Where standard output is ASCII, drawings still come out, with question marks for their lines."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run([*command, "inspect", "llama:tiny"], env=environment, capture_output=True, check=True)
    assert b"decoder: 2 layers, 128 wide" in ran.stdout and b"??" in ran.stdout


def test_threads_are_set(anyformer: Callable, talker: Path) -> None:
    """--threads reaches torch."""
    import torch

    before = torch.get_num_threads()
    try:
        assert anyformer("generate", talker, "x", "-n", 1, "--threads", 2).code == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_json_is_json_alone(anyformer: Callable, talker: Path) -> None:
    """With --json standard output is one JSON value, whatever is said on stderr beside it."""
    for arguments in (("inspect", talker), ("list",), ("generate", talker, "x", "-n", "2"), ("embed", talker, "x")):
        json.loads(anyformer(*arguments, "--json").out)
