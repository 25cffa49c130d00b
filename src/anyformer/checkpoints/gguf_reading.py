"""A checkpoint out of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from anyformer.checkpoints.checkpoint import Carried, Checkpoint
from anyformer.checkpoints.gguf import PLAIN_TYPES, GgufFile
from anyformer.checkpoints.keeping import kept, quantised
from anyformer.checkpoints.tensors import load
from anyformer.checkpoints.weights import DTYPES, Saved
from anyformer.families import gguf
from anyformer.families.config import SPECIAL_TOKENS
from anyformer.planning.shapes import shapes as planned

#: GGUF's names of special tokens where they are not ours ('seperator' is how its writers spell it).
TOKEN_NAMES = {"pad": "padding", "sep": "seperator", "unk": "unknown"}
#: What the metadata call the vocabulary of a model that has none.
NO_VOCABULARY = "none"


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

    def numbers(self, name: str) -> list[float]:
        """The values of a small tensor, each as the shortest decimal that means it in single precision."""
        return [float(str(number)) for number in self._file.read(name).flatten().numpy()]


def open_gguf(path: Path, ignore: Iterable[str] = ()) -> Checkpoint:
    """Read a GGUF file's metadata into a spec and its table of tensors.

    Raises `CheckpointError` or `SpecError` naming the architecture, key or tensor that is not known.
    """
    file = GgufFile(path)
    metadata, tensors = file.metadata, GgufTensors(file)
    shapes = {name: saved.shape for name, saved in tensors.saved.items()}
    family, spec = gguf.read(metadata, shapes, tensors.numbers, str(path), ignore)
    assert family.gguf is not None
    loaded = load(tensors, spec, family.gguf.tensors(spec), ignore=ignore)
    tokenizer = None
    if metadata.get("tokenizer.ggml.model") != NO_VOCABULARY:
        from anyformer import text  # here, because not everything that opens a file wants its tokenizer

        tokenizer = text.from_gguf(metadata)
    generation = {**family.generation, **_special_tokens(metadata)}
    carried = Carried(reasons=loaded.reasons)
    blocks = kept(file, loaded.places, planned(spec))
    return Checkpoint(
        spec,
        loaded.tensors,
        family.name,
        generation,
        tokenizer,
        carried,
        loaded.dtype,
        blocks=blocks,
        quantised=quantised(file, loaded.places),
    )


def _special_tokens(metadata: Mapping[str, Any]) -> dict[str, Any]:
    names = {token: f"tokenizer.ggml.{TOKEN_NAMES.get(token, token)}_token_id" for token in SPECIAL_TOKENS}
    names["decoder_start"] = f"{metadata['general.architecture']}.decoder_start_token_id"
    ids = {f"{token}_token_id": metadata[name] for token, name in names.items() if name in metadata}
    # The end of a turn, or of a message, ends a reply just as well as the end of a text.
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    return {**ids, "eos_token_id": ends[0] if len(ends) == 1 else ends} if ends else ids
