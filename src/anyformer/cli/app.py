"""The verbs together, and what becomes of errors: one sentence, an exit code, and no traceback unless asked for."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings
from collections.abc import Sequence
from io import TextIOWrapper

import typer

from anyformer.cli.bench import bench
from anyformer.cli.chat import chat
from anyformer.cli.compare import compare
from anyformer.cli.convert import convert
from anyformer.cli.embed import embed
from anyformer.cli.evaluate import evaluate
from anyformer.cli.experiment import experiment
from anyformer.cli.generate import generate
from anyformer.cli.inspect import inspect
from anyformer.cli.list import list_
from anyformer.cli.plan import plan
from anyformer.cli.process import keep_freed_memory
from anyformer.cli.sweep import sweep
from anyformer.cli.train import train
from anyformer.cli.verify import verify
from anyformer.errors import AnyformerError

#: Exit codes: the input cannot be used; a mistake of our own (EX_SOFTWARE of sysexits.h).
BAD_INPUT, BUG = 2, 70
#: What torch says where memory runs out, on its devices.
NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")

app = typer.Typer(
    help="Every Transformer from one set of parts: load it, train it, compare it, look inside it.",
    epilog="A MODEL is a run directory, a Hugging Face directory, a .gguf file, a repository on a hub (org/name, "
    "org/name@revision, org/name/file.gguf), or a preset with fresh weights (llama:135m).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _verb in (train, generate, chat, evaluate, embed, inspect):
    app.command()(_verb)
for _verb in (plan, compare, sweep, experiment, convert, verify, bench):
    app.command()(_verb)
app.command("list")(list_)


@app.callback(invoke_without_command=True)
def _anyformer(
    version: bool = typer.Option(False, "--version", help="Print the version and leave."),
) -> None:
    if version:
        from anyformer import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and leave with its exit code: 0; 1 where `verify` found a difference; 2 for input that
    cannot be used, 70 for a mistake of our own, both told in one line on stderr; 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # A terminal that lacks a character shows a question mark instead of an error.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    keep_freed_memory()
    if "--debug" in arguments:
        logging.basicConfig(format="%(name)s: %(message)s")
        logging.getLogger("anyformer").setLevel(logging.DEBUG)
    else:
        warnings.formatwarning = _sentence
    try:
        app(args=arguments, prog_name="anyformer")
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        sys.exit(_tell(error))


def _sentence(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning without the line of code that gave it."""
    return f"{message}\n"


def _is_memory(error: Exception) -> bool:
    """Whether memory is what ran out."""
    return isinstance(error, MemoryError) or any(said in str(error) for said in NO_MEMORY)


def _tell(error: Exception) -> int:
    """Say on stderr what happened; the exit code that goes with it."""
    match error:
        case AnyformerError():
            print(f"anyformer: {error}", file=sys.stderr)
            return BAD_INPUT
        case OSError(filename=str() as path, strerror=str() as reason):
            print(f"anyformer: {path}: {reason}", file=sys.stderr)
            return BAD_INPUT
        case MemoryError() | RuntimeError() if _is_memory(error):
            advice = "give less at a time, or take a smaller model or fewer bits a number"
            print(f"anyformer: there was not enough memory; {advice} (--debug shows where)", file=sys.stderr)
            return BAD_INPUT
        case _:
            what = " ".join(f"{type(error).__name__}: {error}".split())
            hint = "run the command again with --debug to see where, and report it"
            print(f"anyformer: this is a bug, not a mistake of yours ({what}); {hint}", file=sys.stderr)
            return BUG
