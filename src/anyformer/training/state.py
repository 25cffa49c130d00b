"""What a run leaves on disk, so that `kill -9` at any moment costs steps and nothing else.

    RUN/run.json                     the recipe, the number of steps, where it began (machine, versions)
    RUN/data/                        tokenizer and tokenised corpus
    RUN/metrics.jsonl                a row a step
    RUN/samples.jsonl                now and then, what the model makes of held-out examples
    RUN/report.html, tensorboard/    the run as people see it
    RUN/peak.json                    how fast the machine multiplies
    RUN/checkpoints/step-00000200/   a model directory like any other, and besides
        optimizer.safetensors            moments, by parameter
        average.safetensors              the average of the weights, where there is one
        state.json                       counters
        manifest.json                    sha256 of every file, written last
    RUN/model.safetensors ...        the finished model

Everything is written aside (a name that begins with a dot), fsynced and renamed. Random numbers are functions of seed
and step, so there is no generator to save. Nothing is pickled.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anyformer.disk import aside_of, sha256, sync
from anyformer.errors import TrainingError


@dataclass
class Counters:
    """Where a run stands after `step` steps: tokens seen, seconds spent, steps skipped (in all, and in a row)."""

    step: int = 0
    tokens: int = 0
    elapsed: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0


@contextmanager
def held(run: Path) -> Iterator[None]:
    """Within, a run is this process' alone; however the process ends, the system lets go of it. Raises `TrainingError`
    where another process has it: two would write the same files."""
    descriptor = os.open(run, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"{run} is being trained by another process; wait for it, or stop it first") from None
        except OSError:
            # Some network file systems know no locks.
            pass
        yield
    finally:
        os.close(descriptor)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run. Raises `TrainingError` where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainingError(f"{path} is not JSON any more: {error}") from None


def write_directory(path: Path, write: Callable[[Path], None]) -> None:
    """Make a directory appear whole: `write` fills one that stands aside, which is then fsynced and renamed. What
    stood at `path` gives way."""
    aside = empty_aside(path)
    try:
        write(aside)
        put_in_place(aside, path)
    except Exception:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def empty_aside(path: Path) -> Path:
    """An empty directory beside `path`, to be filled and put in its place."""
    aside = aside_of(path)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    return aside


def put_in_place(aside: Path, path: Path) -> None:
    """Fsync a directory and rename it to `path`."""
    for file in _files(aside):
        sync(file)
    sync(aside)
    shutil.rmtree(path, ignore_errors=True)
    aside.rename(path)
    sync(path.parent)


class Checkpoints:
    """The checkpoints of a run, the newest `keep` of them."""

    def __init__(self, run: Path, keep: int = 2) -> None:
        self.directory = run / "checkpoints"
        self.keep = keep

    def save(self, counters: Counters, write: Callable[[Path], None]) -> Path:
        """Save a checkpoint: `write` puts model and moments into a directory; counters and manifest join them."""

        def whole(directory: Path) -> None:
            write(directory)
            seal(directory, counters)

        path = self.path(counters.step)
        write_directory(path, whole)
        self.prune()
        return path

    def tidy(self) -> None:
        """Remove what a process that was killed left half written, or half removed."""
        for left in self.directory.glob(aside_of(Path("step-*")).name):
            shutil.rmtree(left, ignore_errors=True)

    def prune(self) -> None:
        """Remove the checkpoints that are too many."""
        for old in self.paths()[self.keep :]:
            # Renamed first: half a checkpoint must not be found under a checkpoint's name.
            doomed = old.rename(aside_of(old))
            shutil.rmtree(doomed, ignore_errors=True)

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step is."""
        return self.directory / f"step-{step:08d}"

    def paths(self) -> list[Path]:
        """All checkpoints, whole or not, the newest first."""
        return sorted(self.directory.glob("step-*"), reverse=True)

    def newest_whole(self, tell: Callable[[str], None]) -> tuple[Path, Counters] | None:
        """The newest checkpoint whose files are all as its manifest says; each one passed over is told of by name."""
        for path in self.paths():
            try:
                return path, _verified(path)
            except TrainingError as error:
                tell(f"{error}; going back to the one before")
        return None


def seal(directory: Path, counters: Counters, known: Mapping[str, str] | None = None) -> None:
    """Put counters and manifest into a directory; the sha256 of some of its files may be `known`."""
    (directory / "state.json").write_text(json.dumps(asdict(counters), indent=2), encoding="utf-8")
    sums = dict(known or {})
    for file in _files(directory):
        name = file.relative_to(directory).as_posix()
        if name not in sums:
            sums[name] = sha256(file)
    (directory / "manifest.json").write_text(json.dumps({"sha256": sums}, indent=2), encoding="utf-8")


def _verified(path: Path) -> Counters:
    """The counters of a checkpoint. Raises `TrainingError` naming the first file that is not as saved."""
    try:
        sums = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["sha256"]
        for name, expected in sums.items():
            if sha256(path / name) != expected:
                raise TrainingError(f"the checkpoint {path} is damaged: {name} is not as it was saved")
        return Counters(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise TrainingError(f"the checkpoint {path} is damaged: {Path(error.filename).name} is missing") from None
    except TrainingError:
        raise
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"the checkpoint {path} is damaged: {error}") from None


class Metrics:
    """`metrics.jsonl`: a row a step, in the file as soon as the step is over."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def cut_back(self, step: int) -> None:
        """Drop the rows beyond `step` and a torn last line, and open the file for more."""
        kept = 0
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                row = _row(line)
                if row is None or row["step"] > step:
                    break
                kept += len(line)
            os.truncate(self.path, kept)
        # Unbuffered: a row is in the file when `write` returns, and a failed one is not tried again at closing.
        self._file = self.path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        if self._file.write(line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def sync(self) -> None:
        """See the rows so far onto the disk: a checkpoint must not outlive the rows before it."""
        os.fsync(self._file.fileno())

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class NoMetrics(Metrics):
    """Those of a process that writes none."""

    def __init__(self) -> None: ...

    def cut_back(self, step: int) -> None: ...

    def write(self, row: dict[str, Any]) -> None: ...

    def sync(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics file; a torn last line is left out."""
    return list(metrics_rows(path))


def metrics_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The same, one at a time."""
    with path.open("rb") as file:
        for line in file:
            if (row := _row(line)) is not None:
                yield row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) and "step" in row else None


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())
