"""The process that tests of `kill -9` kill: trains, or resumes, and dies where it is told to.

    python killed.py RECIPE.json

It reads one command a line, runs each in a fork of its own (so that the imports are paid for once), and answers each
with the signal that ended it, 0 for none:

    DIRECTORY            train there, or resume what is there
    DIRECTORY call N     the same, killed at the Nth call that touches the disk
    DIRECTORY after S    the same, killed after S seconds
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what optimizers import when first used

from anyformer.training import train

# What a run imports for those who watch it.
with suppress(ImportError):
    import jinja2  # noqa: F401
    import tensorboard.summary.writer.record_writer  # noqa: F401


def die_at(call: int) -> None:
    """From now on count the calls by which files come to be; the `call`-th is the last thing this process does."""
    calls = 0

    def dying(real: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return wrapped

    for owner, name in ((os, "fsync"), (os, "truncate"), (os, "mkdir"), (os, "rename"), (os, "replace")):
        setattr(owner, name, dying(getattr(owner, name)))


def run(recipe: dict[str, Any], directory: str) -> None:
    """Train, or resume."""
    if (Path(directory) / "run.json").exists():
        train(resume=directory, progress=False)
    else:
        train({**recipe, "run": {"directory": directory, "seed": 5}}, progress=False)


def main() -> None:
    torch.set_num_threads(1)
    recipe = json.loads(Path(sys.argv[1]).read_text())
    for line in sys.stdin:
        directory, how, when = [*line.split(), "", ""][:3]
        child = os.fork()
        if child == 0:
            if how == "call":
                die_at(int(when))
            run(recipe, directory)
            os._exit(0)
        if how == "after":
            time.sleep(float(when))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(-os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
