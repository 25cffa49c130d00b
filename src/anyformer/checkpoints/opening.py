"""Opening whatever a reference names: a directory or a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from anyformer.checkpoints.checkpoint import Checkpoint
from anyformer.checkpoints.directory import open_directory
from anyformer.checkpoints.gguf_reading import open_gguf
from anyformer.checkpoints.weights import PICKLED, pickle_refusal
from anyformer.errors import CheckpointError
from anyformer.families import registry


def open(reference: str | Path, *, ignore: Iterable[str] = (), revision: str | None = None) -> Checkpoint:
    """Read what a checkpoint is: a run directory, a Hugging Face directory, or a .gguf file.

    Headers are read and checked against each other; weights stay on the disk until they are asked for. `ignore` names
    config attributes that are to count as absent, and tensors (`*` for any text) that may be left over. Raises
    `CheckpointError` or `SpecError` saying what is wrong, where, and what to do.
    """
    path, ignore = Path(reference), tuple(ignore)
    if revision is not None:
        raise CheckpointError(f"{reference}: a revision is chosen from a hub, and hub names are not loaded yet")
    if path.is_dir():
        return open_directory(path, ignore)
    if not path.is_file():
        raise CheckpointError(_nothing_there(str(reference)))
    with path.open("rb") as file:
        begins_like_gguf = file.read(4) == b"GGUF"
    if begins_like_gguf or path.suffix == ".gguf":
        return open_gguf(path, ignore)
    if path.suffix in PICKLED:
        raise CheckpointError(pickle_refusal(path))
    raise CheckpointError(f"{path} is no checkpoint; name a directory with config.json, or a .gguf file")


def _nothing_there(reference: str) -> str:
    if reference.count("/") == 1 and not reference.startswith((".", "~", "/")):
        return (
            f"there is no '{reference}' on this machine, and names on the hub are not loaded yet; get it first "
            f"(hf download {reference} --local-dir DIRECTORY) and name the directory"
        )
    if ":" in reference:
        return f"there is no file '{reference}', and no family of its name: {', '.join(registry.registered())}"
    return f"there is no file or directory '{reference}'"
