"""Opening whatever a reference names: a directory or a GGUF file."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from anyformer.checkpoints.checkpoint import Carried, Checkpoint
from anyformer.checkpoints.directory import open_directory
from anyformer.checkpoints.gguf import PLAIN_TYPES, GgufFile
from anyformer.checkpoints.tensors import load
from anyformer.checkpoints.weights import DTYPES, PICKLED, Saved, pickle_refusal
from anyformer.errors import CheckpointError
from anyformer.families import registry
from anyformer.families.config import SPECIAL_TOKENS, Config
from anyformer.families.family import GgufSource

#: GGUF's names of special tokens where they are not ours.
_GGUF_TOKENS = {"pad": "padding", "sep": "seperator", "unk": "unknown"}


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


class GgufTensors:
    """The tensors of a GGUF file, in its own type where torch has that type, and else dequantised to float32."""

    def __init__(self, file: GgufFile) -> None:
        self.where, self._file = str(file.path), file
        self._types = {name: PLAIN_TYPES.get(info.type, "float32") for name, info in file.tensors.items()}
        names = {str(dtype).removeprefix("torch."): name for name, dtype in DTYPES.items()}
        self.saved: Mapping[str, Saved] = {
            name: Saved(info.shape, names.get(self._types[name], info.type)) for name, info in file.tensors.items()
        }

    def read(self, name: str) -> torch.Tensor:
        """The tensor, mapped into memory where it needs no dequantising."""
        return self._file.read(name, getattr(torch, self._types[name]))


def open_gguf(path: Path, ignore: Iterable[str] = ()) -> Checkpoint:
    """Read a GGUF file's metadata into a spec and its table of tensors.

    Raises `CheckpointError` or `SpecError` naming the architecture, key or tensor that is not known.
    """
    file = GgufFile(path)
    metadata, where = file.metadata, str(path)
    architecture = str(metadata.get("general.architecture"))
    family = registry.of_gguf(architecture, metadata, where)
    gguf = family.gguf
    assert gguf is not None
    own, ignored = f"{architecture}.", set(ignore)
    keys = {name: value for name, value in metadata.items() if name.startswith(own) and name not in ignored}
    config = Config({name.removeprefix(own): _shortest(value) for name, value in keys.items()}, where, path=own)
    tensors = GgufTensors(file)
    shapes = {name: saved.shape for name, saved in tensors.saved.items()}
    attributes = gguf.read(GgufSource(config, shapes, lambda name: tensors.read(name).tolist()))
    config.finish({}, {})
    spec = family.parse(attributes, where=where)[0]
    loaded = load(tensors, spec, gguf.tensors(spec), ignore=ignore)

    from anyformer import text  # here, because not everything that opens a file wants its tokenizer

    generation = {**family.generation, **_special_tokens(metadata)}
    tokenizer, carried = text.from_gguf(metadata), Carried(reasons=loaded.reasons)
    return Checkpoint(spec, loaded.tensors, family.name, generation, tokenizer, carried, loaded.dtype)


def _shortest(value: Any) -> Any:
    """A number kept in single precision as the shortest decimal that means it: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, float) or _single(value) != value:
        return value
    return next(short for digits in range(1, 18) if _single(short := float(f"{value:.{digits}g}")) == value)


def _single(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def _special_tokens(metadata: dict[str, Any]) -> dict[str, Any]:
    names = {token: f"tokenizer.ggml.{_GGUF_TOKENS.get(token, token)}_token_id" for token in SPECIAL_TOKENS}
    ids = {f"{token}_token_id": metadata[name] for token, name in names.items() if name in metadata}
    # The end of a turn ends a reply just as well as the end of a text.
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {**ids, "eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else ids
