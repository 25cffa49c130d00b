"""A run in a process of its own: `python -m anyformer.comparing.worker`, with a job as a line of JSON on its input.

It stops when its input ends, because then the process that waits for it is gone, and another may resume the run.
"""

from __future__ import annotations

import json
import os
import sys
import threading

from anyformer.comparing.running import Job, train
from anyformer.errors import AnyformerError
from anyformer.training import read_recipe


def main() -> None:
    """Carry the job out. Exit codes: 0; 2 where the run cannot go on, which is told in one line."""
    asked = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        train(Job(asked["name"], read_recipe(asked["recipe"])))
    except AnyformerError as error:
        print(f"anyformer: {error}", file=sys.stderr)
        sys.exit(2)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


if __name__ == "__main__":
    main()
