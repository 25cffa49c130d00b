"""Opening whatever a reference names: a directory, a GGUF file, or a repository on a hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from anyformer.checkpoints import adapters, hub
from anyformer.checkpoints.checkpoint import Checkpoint
from anyformer.checkpoints.directory import CONFIG, DESCRIPTIONS, SPEC, open_directory
from anyformer.checkpoints.gguf_reading import open_gguf
from anyformer.checkpoints.merging import merged
from anyformer.checkpoints.weights import PICKLED, Source, pickle_refusal, read_json
from anyformer.errors import CheckpointError
from anyformer.families import registry


def open(
    reference: str | Path,
    *,
    ignore: Iterable[str] = (),
    revision: str | None = None,
    adapter: str | Path | None = None,
) -> Checkpoint:
    """Read what a checkpoint is: a run directory, a Hugging Face directory, a .gguf file, or a repository on a hub
    (`org/name`, `org/name@revision`, `org/name/file.gguf`).

    Headers are read and checked against each other; weights stay on the disk, or on the hub, until they are asked for.
    An `adapter` (a directory, or a repository) is merged into them; where the reference itself is one, into those of
    the model that it was made for, which its config names. `ignore` names config attributes that are to count as
    absent, and tensors (`*` for any text) that may be left over. Raises `CheckpointError` or `SpecError` saying what
    is wrong, where, and what to do.
    """
    ignore = tuple(ignore)
    if adapter is not None:
        return merged(open(reference, ignore=ignore, revision=revision), _adapter_directory(adapter))
    place = _place(reference, revision)
    if place is not None:
        path, place = _described(place, ignore)
        if adapters.is_adapter(path):
            return replace(_open_path(path, ignore), origin=str(place))
        source = hub.tensors(place, path) if place.file is None else None
        return replace(_open_path(path, ignore, source), origin=str(place))
    path = Path(reference)
    if not path.is_dir() and not path.is_file():
        raise CheckpointError(_nothing_there(str(reference)))
    return replace(_open_path(path, ignore), origin=str(reference))


def fetch(reference: str | Path, *, ignore: Iterable[str] = (), revision: str | None = None) -> str:
    """Have what a reference names on this machine, weights too: the files of a hub's repository are fetched where the
    cache lacks them, with bars on a terminal. Gives the reference pinned to the commit (`org/name@0f3c...`), which then
    opens without a network; any other reference as it is. Raises as `open`."""
    place = _place(reference, revision)
    if place is None:
        return str(reference)
    path, place = _described(place, tuple(ignore))
    if adapters.is_adapter(path):
        fetch(_base(path), ignore=ignore)
    elif place.file is None:
        hub.fetch_weights(place, path)
    return str(place)


def _adapter_directory(reference: str | Path) -> Path:
    """The directory of an adapter, which a path or a repository on a hub names."""
    place = _place(reference, None)
    path = Path(reference) if place is None else _described(place, ())[0]
    if not (path / adapters.CONFIG).is_file():
        raise CheckpointError(f"{reference} is no adapter: it has no {adapters.CONFIG}")
    return path


def _base(adapter: Path) -> str:
    """A reference to the model that an adapter was made for."""
    name, revision = adapters.base_of(adapter)
    if Path(name).is_dir() and adapters.is_adapter(Path(name)):
        raise CheckpointError(f"{adapter} was made for {name}, which is an adapter itself; merge that into its model")
    return name if revision is None or Path(name).exists() else f"{name}@{revision}"


def _place(reference: str | Path, revision: str | None) -> hub.Place | None:
    """Where on a hub a reference points; None where it is something else. What is on the disk wins."""
    place = None if Path(reference).exists() else hub.model_place(str(reference))
    if revision is None:
        return place
    if place is None or place.revision not in (None, revision):
        raise CheckpointError(
            f"{reference}: a revision, here '{revision}', is one of a repository on a hub that names no other itself; "
            f"leave it out"
        )
    return place._replace(revision=revision)


def _described(place: hub.Place, ignore: tuple[str, ...]) -> tuple[Path, hub.Place]:
    """What describes the model of a repository, on this machine, and its place pinned to the commit: a file whole, or a
    directory without weights, so that a model which cannot be read is refused before they are fetched."""
    if place.file is not None:
        path = hub.fetch_file(place, place.file)
        return path, place._replace(revision=path.parents[place.file.count("/")].name)
    from anyformer.text.files import FILES  # here, because not everything that opens a file wants its tokenizer

    directory = hub.snapshot(place, (*DESCRIPTIONS, *FILES, adapters.CONFIG), quiet=True)
    pinned = place._replace(revision=directory.name)
    if adapters.is_adapter(directory):
        return hub.snapshot(pinned, (adapters.WEIGHTS,), quiet=True), pinned
    if (directory / CONFIG).is_file():
        attributes, where = read_json(directory / CONFIG), str(directory / CONFIG)
        registry.of(attributes, where).parse(attributes, where=where, ignore=ignore)
    elif not (directory / SPEC).is_file():
        raise CheckpointError(hub.no_checkpoint(pinned, f"{place} holds neither {CONFIG} nor {SPEC}"))
    return directory, pinned


def _open_path(path: Path, ignore: tuple[str, ...], source: Source | None = None) -> Checkpoint:
    """A directory, whose tensors may come from another `source`, or a file."""
    if path.is_dir() and adapters.is_adapter(path):
        return _adapted(path, ignore)
    if path.is_dir():
        return open_directory(path, ignore, source)
    with path.open("rb") as file:
        begins_like_gguf = file.read(4) == b"GGUF"
    if begins_like_gguf or path.suffix == ".gguf":
        return open_gguf(path, ignore)
    if path.suffix in PICKLED:
        raise CheckpointError(pickle_refusal(path))
    raise CheckpointError(f"{path} is no checkpoint; name a directory with config.json, or a .gguf file")


def _adapted(adapter: Path, ignore: tuple[str, ...]) -> Checkpoint:
    """The model that an adapter was made for, with its changes, and with its own tokenizer where it has one."""
    from anyformer.text import files as tokenizers

    try:
        base = open(_base(adapter), ignore=ignore)
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter} is an adapter, and the model that it was made for cannot be opened: {error}; name that model "
            f"yourself: af.load(MODEL, adapter='{adapter}')"
        ) from None
    return replace(merged(base, adapter), tokenizer=tokenizers.load(adapter) or base.tokenizer, origin=str(adapter))


def _nothing_there(reference: str) -> str:
    if ":" in reference:
        return f"there is no file '{reference}', and no family of its name: {', '.join(registry.registered())}"
    return f"there is no file or directory '{reference}' (a model on a hub is named org/name)"
