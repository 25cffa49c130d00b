"""Safetensors files: which tensors a directory holds, checked before any is read, and writing them in shards.

8 bytes: length of the header | header: JSON {name: {dtype, shape, data_offsets}} | the tensors' bytes
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from anyformer.errors import CheckpointError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Files that hold Python pickles, which can run any code when they are read.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
#: The types of number that a model's parameters may have, by their name in a file.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: What the format itself allows a header to weigh.
LARGEST_HEADER = 100_000_000


class Saved(NamedTuple):
    """A tensor in a file: its shape (rows first) and the file's name for its type of number."""

    shape: tuple[int, ...]
    dtype: str


class Source(Protocol):
    """Where saved tensors are read from. `where` names it in messages."""

    where: str
    saved: Mapping[str, Saved]

    def read(self, name: str) -> torch.Tensor: ...


class SafetensorsSource:
    """The safetensors files of a directory: one file, or the shards that an index names.

    Opening reads headers only; tensors are mapped into memory as they are read. Raises `CheckpointError` naming the
    file that is missing, cut short or not safetensors.
    """

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self._files: dict[str, Path] = {}
        self._open: dict[Path, Any] = {}
        saved: dict[str, Saved] = {}
        for path, names in _shards(directory).items():
            header = read_header(path)
            if missing := sorted((names or set()) - header.keys()):
                raise CheckpointError(f"{path} lacks {missing[0]}, which {INDEX} places there; get both files again")
            saved |= header
            self._files |= dict.fromkeys(header, path)
        self.saved: Mapping[str, Saved] = saved

    def read(self, name: str) -> torch.Tensor:
        """The tensor as the file has it, mapped into memory."""
        path = self._files[name]
        try:
            if path not in self._open:
                self._open[path] = safe_open(path, framework="pt")
            return self._open[path].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from None


def _shards(directory: Path) -> dict[Path, set[str] | None]:
    """The files to read, with the tensors that an index expects in each."""
    if (directory / WEIGHTS).is_file():
        return {directory / WEIGHTS: None}
    index = directory / INDEX
    if not index.is_file():
        raise CheckpointError(_no_weights(directory))
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to files; get the file again")
    shards: dict[Path, set[str] | None] = {}
    for file in sorted(set(weight_map.values())):
        place = PurePosixPath(file)
        if place.is_absolute() or ".." in place.parts or "\\" in file or ":" in file:
            raise CheckpointError(f"{index} names '{file}', which lies outside the directory; it is not to be trusted")
        if not (directory / place).is_file():
            raise CheckpointError(f"{index} names '{file}', which is not there; get the missing file")
        shards[directory / place] = {name for name, shard in weight_map.items() if shard == file}
    return shards


def _no_weights(directory: Path) -> str:
    pickled = sorted(path.name for path in directory.iterdir() if path.suffix in PICKLED)
    if pickled:
        return pickle_refusal(directory / pickled[0])
    return f"{directory} holds neither {WEIGHTS} nor {INDEX}; get the weights in safetensors format"


def pickle_refusal(path: Path) -> str:
    """Why a pickled file is not read, and what to do instead."""
    return (
        f"{path} is a Python pickle, which can run any code when it is read; get the model in safetensors format, or "
        f"convert it where you trust it: safetensors.torch.save_file(torch.load('{path.name}', weights_only=True), "
        f"'{WEIGHTS}')"
    )


def read_header(path: Path) -> dict[str, Saved]:
    """The tensors of a safetensors file. Raises `CheckpointError` if it is anything but one whole such file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        text = file.read(length) if length <= LARGEST_HEADER else b""
    if start == b"version ":
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights themselves; run `git lfs pull` there")
    if size < 8:
        raise CheckpointError(f"{path} has {size} bytes, too few for a safetensors file; get it again")
    if length > LARGEST_HEADER or (len(text) < length and text[:1] not in (b"", b"{")):
        raise CheckpointError(f"{path} is no safetensors file: it claims a header of {length} bytes")
    if len(text) < length:
        raise CheckpointError(f"{path} is cut short: {8 + length} bytes expected for the header, {size} found")
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        ends = [entry["data_offsets"][1] for entry in header.values()]
        saved = {name: Saved(tuple(entry["shape"]), entry["dtype"]) for name, entry in header.items()}
        expected = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise CheckpointError(f"{path} is no safetensors file: its header is not what the format asks for") from None
    if expected > size:
        raise CheckpointError(f"{path} is cut short: {expected} bytes expected, {size} found; get it again")
    try:
        with safe_open(path, framework="pt"):
            return saved
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no safetensors file: {error}") from None


def write_weights(directory: Path, tensors: Mapping[str, torch.Tensor], sizes: Mapping[str, int], limit: int) -> None:
    """Write tensors into a directory: one file, or shards of at most `limit` bytes and their index.

    `sizes` gives the bytes of each, so that tensors are made (by asking `tensors`) only a shard at a time.
    """
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > limit:
            shards.append([])
        shards[-1].append(name)
    weight_map = {}
    for number, names in enumerate(shards, start=1):
        file = WEIGHTS if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        ready = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(ready, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `CheckpointError` naming the file and the place of what is wrong."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a JSON {type(data).__name__} where an object is needed")
    return data
