"""A model and a LoRA adapter of it, whoever wrote that, as one checkpoint: W + scale · B A in the place of W.

What a family's table does to a matrix of the file (cut, turn, reorder) it does to a change of it as well, for all of
that is linear; so an adapter fits a model out of any kind of file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyformer.checkpoints.adapters import CONFIG, PREFIX, WEIGHTS, A, B, is_turned, lines, tensors
from anyformer.checkpoints.checkpoint import Checkpoint
from anyformer.checkpoints.tensors import Lazy, saved_shapes, to_ours
from anyformer.checkpoints.weights import read_json
from anyformer.errors import CheckpointError
from anyformer.families import registry
from anyformer.families.names import Line
from anyformer.planning.shapes import Shapes, shapes

#: The attributes of adapter_config.json that say what the tensors mean.
READ = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "init_lora_weights")
#: Those that nothing here needs, with the reason. Any other must be empty.
IGNORED = {
    **dict.fromkeys(("r", "rank_pattern"), "the tensors' shapes say it"),
    **dict.fromkeys(("target_modules", "exclude_modules", "modules_to_save", "bias"), "the tensors' names say it"),
    **dict.fromkeys(("layers_to_transform", "layers_pattern"), "the tensors' names say it"),
    **dict.fromkeys(("base_model_name_or_path", "revision", "auto_mapping", "task_type"), "which model it is for"),
    **dict.fromkeys(("lora_dropout", "inference_mode", "runtime_config"), "for training"),
    **dict.fromkeys(("megatron_core", "qalora_group_size"), "a default that another attribute brings to effect"),
    "fan_in_fan_out": "the family's table of names says it",
    "peft_version": "a note of the writer",
}
#: Beginnings that leave the model's matrices as they are.
BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


def merged(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """A checkpoint with the changes of an adapter's directory added to its matrices as they are read, in float32 at
    least. What the adapter holds whole (a head trained with it, biases) takes the place of the checkpoint's own.

    Raises `CheckpointError` naming what of the adapter does not fit the model, or is no LoRA that is known here.
    """
    family = registry.named(checkpoint.family) if checkpoint.family is not None else None
    prefix = family.prefix if family is not None else ""
    wanted = shapes(checkpoint.spec)
    places = {name: line for line in lines(family, checkpoint.spec) for name in line.saved}
    changes: dict[str, Tensor] = {}
    whole: dict[str, Tensor] = {}
    for name, tensor, is_whole in _contents(directory):
        place = next((form for form in (name, prefix + name) if form in places), None)
        if place is None or (is_whole and len(places[place].saved) > 1):
            raise CheckpointError(
                f"{directory} changes {name}, and the model has no tensor of its own under that name; the adapter is "
                f"one of another model"
            )
        turned = tensor if is_whole or not is_turned(places[place]) else tensor.T
        expected = saved_shapes(places[place], wanted)[place]
        if tuple(turned.shape) != expected:
            raise CheckpointError(
                f"{directory} changes {name} as if its shape were {list(turned.shape)}, and the model's is "
                f"{list(expected)}; the adapter is one of another model"
            )
        (whole if is_whole else changes)[place] = turned
    makers = {name: partial(checkpoint.tensors.__getitem__, name) for name in checkpoint.tensors}
    changed = {places[name].ours: places[name] for name in (*changes, *whole)}
    for line in changed.values():
        for index, ours in enumerate(line.ours):
            makers[ours] = partial(_changed, checkpoint.tensors, line, index, changes, whole, wanted)
    gone = {name for ours in changed for name in ours}
    same = {name: partial(checkpoint.blocks.__getitem__, name) for name in checkpoint.blocks if name not in gone}
    return replace(checkpoint, tensors=Lazy(makers), blocks=Lazy(same), quantised=checkpoint.quantised - gone)


def _changed(
    before: Mapping[str, Tensor],
    line: Line,
    index: int,
    changes: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
    wanted: Shapes,
) -> Tensor:
    """One of our tensors after the changes of the saved ones that it is made of."""
    if line.saved[0] in whole:
        return to_ours(line, [whole[line.saved[0]]], wanted)[index]
    tensor = before[line.ours[index]]
    exact = torch.promote_types(tensor.dtype, torch.float32)
    none = torch.zeros(()).expand(saved_shapes(line, wanted)[line.saved[0]])
    change = to_ours(line, [changes.get(name, none) for name in line.saved], wanted)[index]
    return tensor.to(exact) + change.to(exact)


def _contents(directory: Path) -> Iterator[tuple[str, Tensor, bool]]:
    """What an adapter holds: (the name of a saved tensor, its change [out, in] or the whole of it, which of these)."""
    attributes = _attributes(directory / CONFIG)
    found = tensors(directory)
    for key, tensor in found.items():
        name, module = key.removeprefix(PREFIX), key.removeprefix(PREFIX).removesuffix(A).removesuffix(B)
        if name == module and "lora_" not in name:
            yield name, tensor, True
            continue
        halves = [found.get(f"{PREFIX}{module}{end}") for end in (A, B)]
        down, up = halves
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down):
            raise CheckpointError(f"{directory / WEIGHTS} holds {key}, which is no half of a matrix's change B A")
        if name.endswith(A):
            yield f"{module}.weight", _scale(attributes, module, len(down)) * (up.float() @ down.float()), False


def _attributes(path: Path) -> dict[str, Any]:
    """An adapter's config. Raises `CheckpointError` for an adapter that is more than B A on a model as it is."""
    attributes = read_json(path)
    kind = str(attributes.get("peft_type")).upper()
    if kind != "LORA":
        raise CheckpointError(f"{path}: an adapter of type {kind} is not known here, LORA is; merge it with peft")
    for name, value in attributes.items():
        if value and name not in READ and name not in IGNORED:
            raise CheckpointError(f"{path}: {name}={value!r} is not known here; merge the adapter with peft")
    if attributes.get("init_lora_weights") not in BEGINNINGS:
        raise CheckpointError(
            f"{path}: init_lora_weights={attributes['init_lora_weights']!r} changes the base model, too; convert the "
            f"adapter with peft (path_initial_model_for_weight_conversion)"
        )
    patterns = attributes.get("alpha_pattern") or {}
    alphas = [attributes.get("lora_alpha", 8), *(patterns.values() if isinstance(patterns, dict) else [None])]
    if not all(isinstance(alpha, int | float) for alpha in alphas):
        raise CheckpointError(f"{path}: lora_alpha and alpha_pattern must be numbers, not {alphas}")
    if odd := [name for name in patterns if not re.fullmatch(r"\^?[\w.]+", name)]:
        raise CheckpointError(f"{path}: alpha_pattern '{odd[0]}' is a regular expression, not a name; merge with peft")
    return attributes


def _scale(attributes: Mapping[str, Any], module: str, rank: int) -> float:
    """α / r, or α / √r (Kalajdzievski 2023, theorem 3.2), with the α of the pattern that a module's name ends in."""
    own = (
        alpha
        for name, alpha in (attributes.get("alpha_pattern") or {}).items()
        if module == name.removeprefix("^") or (name[0] != "^" and module.endswith(f".{name}"))
    )
    alpha = next(own, attributes.get("lora_alpha", 8))
    return alpha / (rank**0.5 if attributes.get("use_rslora") else rank)
