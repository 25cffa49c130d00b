"""The tensors of a checkpoint besides the model that it is, as one process writes them, and as any number read them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyformer.errors import CheckpointError
from anyformer.model import Transformer
from anyformer.model.laid import is_laid

#: By what they are (`optimizer`, `average`), tensors by name.
Tensors = Mapping[str, Mapping[str, Tensor]]


def write_whole(directory: Path, model: Transformer, tensors: Tensors) -> None:
    """Write a model as a checkpoint like any other, and a file for each kind of tensors besides. Raises
    `CheckpointError` where the disk is full."""
    model.save(directory)
    for what, held in tensors.items():
        path = directory / f"{what}.safetensors"
        try:
            save_file(dict(held), path)
        except SafetensorError as error:
            raise CheckpointError(f"{path} cannot be written: {error}") from error


def is_sharded(directory: Path) -> bool:
    """Whether many processes wrote this checkpoint together, its model too."""
    return (directory / "shards").exists()


def saved_tensors(directory: Path, model: Transformer) -> dict[str, dict[str, Tensor]]:
    """What a checkpoint holds besides its model, each tensor laid as the parameter of `model` that it belongs to. Where
    many processes wrote it, the parameters are filled from it as well."""
    parameters = dict(model.named_parameters())

    def owner(what: str, name: str) -> Tensor:
        return parameters[name.rpartition(".")[0] if what == "optimizer" else name]

    def like(what: str, name: str) -> Tensor:
        parameter = owner(what, name).detach()
        if what == "model":
            return parameter
        # The one scalar that optimizers keep is the number of steps.
        return torch.zeros((), device=parameter.device) if name.endswith(".step") else torch.zeros_like(parameter)

    if is_sharded(directory):
        from anyformer.training.scale.sharded import read_shards

        return read_shards(directory, like)
    kinds = (what for what in ("optimizer", "average") if (directory / f"{what}.safetensors").exists())
    found = {what: load_file(directory / f"{what}.safetensors") for what in kinds}
    return {
        what: {name: _laid_like(owner(what, name), tensor) for name, tensor in held.items()}
        for what, held in found.items()
    }


def _laid_like(parameter: Tensor, whole: Tensor) -> Tensor:
    """This process' part of a tensor as large as a parameter."""
    if not is_laid(parameter) or whole.shape != parameter.shape:
        return whole
    from anyformer.training.scale.sharded import part_of

    return part_of(parameter, whole)
