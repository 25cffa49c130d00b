"""A model written as a checkpoint: a directory, or a GGUF file."""

from __future__ import annotations

import tempfile
from collections import ChainMap
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from anyformer import checkpoints
from anyformer.checkpoints import card, directory, hub
from anyformer.checkpoints.tensors import Lazy
from anyformer.errors import InputError
from anyformer.model.transformer import Transformer
from anyformer.parts.blocks import Blocks
from anyformer.parts.quantized import QuantizedEmbedding, QuantizedLinear, QuantizedMatrices

if TYPE_CHECKING:
    from anyformer.text import Tokenizer


def save(model: Transformer, path: Path) -> None:
    """Write a model; a name that ends in .gguf asks for a file, any other for a directory."""
    if path.suffix != ".gguf":
        if model.quantization is not None:
            raise InputError("only a GGUF file holds a quantised model; save it under a name that ends in .gguf")
        checkpoints.write(
            path,
            spec=model.spec,
            tensors=model.state_dict(),
            family=model.family,
            generation=model.generation,
            tokenizer=model.tokenizer,
            carried=model.carried,
        )
        return
    write_file(model, path, model.tokenizer)


def push(
    model: Transformer,
    repository: str,
    *,
    private: bool | None,
    revision: str | None,
    message: str,
    license: str | None,
) -> str:
    """Put what `save` writes, and a model card, into the repository `org/name` of a hub. Gives `org/name@commit`."""
    repository = hub.repository(repository)
    with tempfile.TemporaryDirectory() as place:
        save(model, Path(place))
        described = card.write(model.spec, repository, family=model.family, origin=model.origin, license=license)
        Path(place, "README.md").write_text(described, encoding="utf-8")
        return hub.push(
            Path(place), repository, private=private, revision=revision, message=message, replaced=directory.OWNED
        )


def write_file(model: Transformer, path: Path, tokenizer: Tokenizer | None) -> None:
    """Write a GGUF file of a model, matrices in blocks as they are, with this tokenizer's vocabulary or none."""
    blocks = blocks_of(model)
    numbers: Mapping[str, Tensor] = Lazy({name: partial(_dequantized, matrix) for name, matrix in blocks.items()})
    checkpoints.write_gguf(
        path,
        spec=model.spec,
        tensors=ChainMap(dict(model.named_parameters()), numbers),  # type: ignore[arg-type]
        dtype=model.dtype,
        blocks=blocks,
        family=model.family,
        generation=model.generation,
        tokenizer=tokenizer,
    )


def blocks_of(model: Transformer) -> dict[str, Blocks]:
    """The matrices of a model that are in blocks, by the names of the parameters that they stand for."""
    return {
        name if isinstance(module, QuantizedMatrices) else f"{name}.weight": Blocks(module.blocks, module.format)
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear | QuantizedEmbedding | QuantizedMatrices)
    }


def _dequantized(matrix: Blocks) -> Tensor:
    return matrix.dequantize()
