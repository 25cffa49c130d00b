"""Many runs, one after the other or side by side, that can be stopped anywhere and go on.

Each is a run directory like any other. Those that are finished stay as they are, the one that was stopped is resumed,
and one whose loss was lost to infinity counts as diverged and is not tried again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from anyformer import training
from anyformer.errors import AnyformerError, ExperimentError
from anyformer.training import Recipe
from anyformer.training.state import read_json, read_metrics
from anyformer.training.watching.progress import Display

State = Literal["new", "open", "finished", "diverged"]
Tell = Callable[[str], None]

#: Seconds between looks at the workers.
PATIENCE = 0.05


@dataclass(frozen=True)
class Job:
    """A run to be carried out: what it is called, and its recipe with its directory."""

    name: str
    recipe: Recipe

    @property
    def directory(self) -> Path:
        return self.recipe.run.directory

    @property
    def state(self) -> State:
        """How far the run is."""
        if not (self.directory / "run.json").exists():
            return "new"
        metrics = self.directory / "metrics.jsonl"
        rows = read_metrics(metrics) if metrics.exists() else []
        last = rows[-self.recipe.training.skip_limit :]
        if len(last) == self.recipe.training.skip_limit and all(
            None in (row["loss"], row["gradient_norm"]) for row in last
        ):
            return "diverged"
        steps = read_json(self.directory / "run.json").get("steps")
        is_whole = bool(rows) and rows[-1]["step"] == steps and any(self.directory.glob("model*.safetensors"))
        return "finished" if is_whole else "open"


def carry_out(jobs: Sequence[Job], *, workers: int = 1, progress: bool = True) -> None:
    """Train whatever is not finished: in this process, or `workers` at a time in processes of their own, each on a
    device of its own where there are several, else on its share of the threads.

    Raises what a run raises, but for one that diverges; `KeyboardInterrupt` where one was stopped, which has saved
    what it had.
    """
    display = Display(progress)
    waiting = [job for job in jobs if job.state not in ("finished", "diverged")]
    if len(waiting) < len(jobs):
        display.note(f"{len(jobs) - len(waiting)} of {len(jobs)} runs are done by now")
    if workers > 1:
        _Workers(workers, display.note).carry_out(waiting)
        return
    for index, job in enumerate(waiting, 1 + len(jobs) - len(waiting)):
        display.note(f"run {index} of {len(jobs)}: {job.name}")
        try:
            result = train(job, progress=progress)
        except AnyformerError:
            if job.state != "diverged":
                raise
            display.note(f"{job.name} diverged")
            continue
        if not result.finished:
            raise KeyboardInterrupt


def train(job: Job, *, progress: bool = False) -> training.Result:
    """Start a run, or resume it; what is said of one that stops is how to go on with all of them."""
    again = "the same command again"
    if job.state == "new":
        return training.train(job.recipe, progress=progress, again=again)
    return training.train(resume=job.directory, progress=progress, again=again)


@dataclass
class _Worker:
    """A run in a process of its own, with what it says; it ends when this process does."""

    job: Job
    place: int
    process: subprocess.Popen[bytes]
    said: IO[bytes] = field(repr=False)

    def last_words(self) -> str:
        self.said.seek(0)
        lines = self.said.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1].removeprefix("anyformer: ") if lines else f"it ended with code {self.process.returncode}"


class _Workers:
    """So many places for runs; whichever is free takes the next one."""

    def __init__(self, count: int, tell: Tell) -> None:
        self.count, self.tell = count, tell
        self.busy: list[_Worker] = []

    def carry_out(self, jobs: Sequence[Job]) -> None:
        left = list(jobs)
        try:
            while left or self.busy:
                free = set(range(self.count)) - {worker.place for worker in self.busy}
                for place in sorted(free)[: len(left)]:
                    self.busy.append(self.start(left.pop(0), place))
                for worker in [each for each in self.busy if each.process.poll() is not None]:
                    self.busy.remove(worker)
                    self.end(worker)
                time.sleep(PATIENCE)
        finally:
            # A run that is asked to stop saves what it has learned.
            for worker in self.busy:
                worker.process.terminate()
            for worker in self.busy:
                worker.process.wait()

    def start(self, job: Job, place: int) -> _Worker:
        said = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, "-m", "anyformer.comparing.worker"]
        # In a session of its own, Ctrl-C reaches it once, and from here.
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env=environment(place, self.count),
            start_new_session=True,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"name": job.name, "recipe": job.recipe.to_data()}).encode() + b"\n")
        process.stdin.flush()
        self.tell(f"started: {job.name}")
        return _Worker(job, place, process, said)

    def end(self, worker: _Worker) -> None:
        job = worker.job
        state = job.state
        if state not in ("finished", "diverged"):
            raise ExperimentError(f"{job.name} stopped: {worker.last_words()}")
        worker.said.close()
        self.tell(f"{state}: {job.name}")


def devices() -> list[str]:
    """What CUDA calls the accelerators of this process; none on a machine without."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def environment(place: int, workers: int) -> dict[str, str]:
    """What a worker's process is told: its accelerator, or its share of this process' threads."""
    import torch

    found = devices()
    own = {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // workers))}
    if found:
        own["CUDA_VISIBLE_DEVICES"] = found[place % len(found)]
    return {**os.environ, **own}
