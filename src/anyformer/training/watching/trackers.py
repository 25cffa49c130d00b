"""Where people follow a run besides the terminal: TensorBoard, wandb, trackio, each through its own library, which is
imported when a recipe names it.

None of them can change a run, or stop one: what goes wrong there is said once, and the run goes on without it. After a
kill TensorBoard's files are cut back as the metrics are. The others are told the rows since the last checkpoint again,
which are the same: wandb passes them over, and trackio keeps both.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anyformer.errors import TrainingError
from anyformer.training.state import read_json

if TYPE_CHECKING:
    from anyformer.training.recipe import Recipe

Row = Mapping[str, Any]
#: Where to look for what libraries ask for.
EXTRAS = {"tensorboard": "train", "wandb": "wandb", "trackio": "trackio"}
PROJECT = "anyformer"


class Tracker(Protocol):
    """Something that is told every row of the metrics."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in RUN/tensorboard, one for each sitting, through the writer of the tensorboard package.

    A row is in its file as soon as it is written, so that a kill loses none that the metrics have.
    """

    def __init__(self, directory: Path, recipe: Recipe, begin: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder = directory / "tensorboard"
        folder.mkdir(exist_ok=True)
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        for path in earlier:
            cut_back(path, begin)
        path = folder / f"events.out.tfevents.{time.time():.0f}.{len(earlier):04}"
        self._file = path.open("wb", buffering=0)
        self._writer = RecordWriter(self._file)
        # A TensorBoard that is open meanwhile is told where the run goes on.
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._add(Event(wall_time=time.time(), step=begin + 1, session_log=start))

    def write(self, row: Row) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in named(row).items()]
        self._add(Event(wall_time=time.time(), step=row["step"], summary=Summary(value=values)))

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())


def cut_back(path: Path, step: int) -> None:
    """Drop the events of an event file from the first one beyond `step` on, and a torn one.

    The format is TFRecord's: length (8 bytes), its checksum (4), the event, its checksum (4).
    """
    from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]

    kept, size = 0, path.stat().st_size
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            length = struct.unpack("<Q", header[:8])[0]
            if kept + length + 16 > size or Event.FromString(file.read(length)).step > step:
                break
            kept += length + 16
            file.seek(kept)
    os.truncate(path, kept)


class Wandb:
    """A run of Weights & Biases. Without credentials, and where its server cannot be reached, it is kept in RUN/wandb,
    and `wandb sync` sends it later."""

    def __init__(self, directory: Path, recipe: Recipe, begin: int) -> None:
        import wandb  # type: ignore[import-not-found]

        how = {
            "project": os.environ.get("WANDB_PROJECT", PROJECT),
            "name": directory.resolve().name,
            "id": identity(directory),
            "resume": "allow",
            "config": recipe.to_data(),
            "dir": str(directory),
            "settings": wandb.Settings(silent=True, console="off", init_timeout=20),
        }
        mode = os.environ.get("WANDB_MODE") or ("online" if wandb.login(prompt=False) else "offline")
        try:
            self._run = wandb.init(**how, mode=mode)
        except wandb.Error:
            self._run = wandb.init(**how, mode="offline")

    def write(self, row: Row) -> None:
        self._run.log(named(row), step=row["step"])

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, which keeps it on this machine; `trackio show` is its page."""

    def __init__(self, directory: Path, recipe: Recipe, begin: int) -> None:
        import trackio  # type: ignore[import-not-found]

        name = f"{directory.resolve().name}-{identity(directory)[:6]}"
        self._finish = trackio.finish
        # It speaks on standard output, where results stand.
        with redirect_stdout(io.StringIO()):
            self._run = trackio.init(PROJECT, name=name, config=recipe.to_data(), resume="allow", embed=False)

    def write(self, row: Row) -> None:
        self._run.log(named(row), step=row["step"])

    def close(self) -> None:
        with redirect_stdout(io.StringIO()):
            self._finish()


#: What is called how in `run.watch`: (run directory, recipe, steps done before) -> a tracker.
TRACKERS: dict[str, Callable[[Path, Recipe, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def identity(directory: Path) -> str:
    """What tells a run from all others, and is the same when it is resumed."""
    began = read_json(directory / "run.json").get("started", {})
    return hashlib.blake2b(f"{directory.resolve()} {began}".encode(), digest_size=8).hexdigest()


def named(row: Row) -> dict[str, float]:
    """The numbers of a metrics row by the names that they have there: `train/loss`, `validation/bits_per_byte`."""
    names = {name: f"train/{name}" for name in ("loss", "gradient_norm", "learning_rate")}
    names |= {name: f"progress/{name}" for name in ("tokens", "elapsed")}
    names |= {name: name.replace("_", "/", 1) for name in row if name.startswith("validation_")}
    return {names[name]: float(value) for name, value in row.items() if name in names and value is not None}


def trackers_of(recipe: Recipe) -> tuple[str, ...]:
    """Where a run is to be followed: what its recipe names, else TensorBoard where it is installed.

    Raises `TrainingError` for a library that is named and missing.
    """
    if recipe.run.watch is None:
        return ("tensorboard",) if _is_installed("tensorboard") else ()
    for name in recipe.run.watch:
        if not _is_installed(name):
            raise TrainingError(
                f"run.watch names {name}, which is not installed: pip install 'anyformer[{EXTRAS[name]}]', or leave "
                f"it out"
            )
    return recipe.run.watch


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@contextmanager
def following(
    names: Iterable[str], directory: Path, recipe: Recipe, begin: int, note: Callable[[str], None]
) -> Iterator[Callable[[Row], None]]:
    """Gives the function that tells all of `names` a row of the metrics. One that fails is noted, and told no more."""
    open_ones: dict[str, Tracker] = {}

    def guarded(name: str, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:
            open_ones.pop(name, None)
            note(f"{name} does not follow the run any more ({type(error).__name__}: {error}); the run goes on")

    for name in names:
        made = guarded(name, lambda name=name: TRACKERS[name](directory, recipe, begin))
        if made is not None:
            open_ones[name] = made

    def tell(row: Row) -> None:
        for name, tracker in list(open_ones.items()):
            guarded(name, lambda tracker=tracker: tracker.write(row))

    try:
        yield tell
    finally:
        for name, tracker in list(open_ones.items()):
            guarded(name, tracker.close)
