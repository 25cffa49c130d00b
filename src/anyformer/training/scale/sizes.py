"""How many processes a recipe's `scale` asks for, and whether a model can be laid over them: arithmetic, no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from anyformer import spec
from anyformer.errors import TrainingError

if TYPE_CHECKING:
    from anyformer.training.recipe import Recipe, Scale

#: The axes of the mesh, those whose ranks speak least first.
AXES = ("data", "shard", "context", "expert", "tensor")
#: How many ranks there are along each axis.
Sizes = dict[str, int]
ALONE: Sizes = dict.fromkeys(AXES, 1)


def sizes_for(scale: Scale, processes: int) -> Sizes:
    """The mesh for so many processes. What is left out of `shard` (then of `data`) takes those that are left.

    Raises `TrainingError` where they do not fit.
    """
    asked = {axis: getattr(scale, axis) for axis in AXES}
    known = math.prod(size for size in asked.values() if size is not None)
    left, rest = divmod(processes, known)
    open_axes = [axis for axis in ("shard", "data") if asked[axis] is None]
    if rest or not left or (left > 1 and not open_axes):
        given = {axis: size for axis, size in asked.items() if size is not None}
        divided = {axis: size for axis, size in given.items() if size > 1}
        named = " x ".join(f"scale.{axis}={size}" for axis, size in (divided or given).items())
        many = "a multiple of " if open_axes else ""
        raise TrainingError(
            f"{named} takes {many}{known} processes, and there {'is one' if processes == 1 else f'are {processes}'}; "
            f"run: torchrun --nproc-per-node {known} -m anyformer train RECIPE"
        )
    filled = {axis: left if axis == open_axes[0] else 1 for axis in open_axes}
    return {axis: size if size is not None else filled[axis] for axis, size in asked.items()}


def check(recipe: Recipe, model: spec.Transformer, sizes: Sizes) -> None:
    """Raise `TrainingError` where a recipe's batches, or a model of this spec, cannot be laid over such a mesh."""
    rows = sizes["data"] * sizes["shard"] * sizes["expert"]
    batch_rows = recipe.training.batch_tokens // recipe.training.sequence_length
    if recipe.training.minutes is not None and math.prod(sizes.values()) > 1:
        raise TrainingError("training.minutes is measured on one process; for many, set training.steps or tokens")
    if recipe.lora is not None and sizes["tensor"] > 1:
        raise TrainingError("scale.tensor cannot divide a matrix that has an adapter (lora); use scale.shard")
    if batch_rows < rows:
        raise TrainingError(
            f"training.batch_tokens holds {batch_rows} windows of training.sequence_length, fewer than the {rows} "
            f"processes that read rows of their own (scale.data x scale.shard x scale.expert); make it larger"
        )
    mixtures = [mixer for mixer in _mixers(model) if isinstance(mixer, spec.RoutedExperts)]
    if sizes["expert"] > 1 and not mixtures:
        raise TrainingError("scale.expert needs a mixture of experts, and this model has none; use scale.shard")
    for mixture in mixtures:
        _divides("scale.expert", sizes["expert"], mixture.experts, "experts")
    for mixer in _mixers(model):
        if isinstance(mixer, spec.Attention):
            for name, heads in (("heads", mixer.heads), ("kv_heads", mixer.kv_heads)):
                _divides("scale.tensor", sizes["tensor"], heads, name)
            together = sizes["tensor"] * sizes["context"]
            _divides("scale.tensor x scale.context", together, mixer.heads, "heads")
            if mixer.kv_heads % together and together % mixer.kv_heads:
                _divides("scale.tensor x scale.context", together, mixer.kv_heads, "kv_heads")
            if sizes["tensor"] > 1 and mixer.query_key_norm is not None and mixer.query_key_norm_over == "width":
                raise TrainingError(
                    "scale.tensor cannot divide attention whose queries are normalised over all heads together; use "
                    "scale.shard"
                )
        elif isinstance(mixer, spec.FeedForward):
            _divides("scale.tensor", sizes["tensor"], mixer.hidden, "hidden")
        elif sizes["context"] > 1 and not isinstance(mixer, spec.RoutedExperts):
            raise TrainingError(f"scale.context does not know the mixer '{mixer.kind}'; use scale.shard")
    if sizes["context"] > 1 and (model.shape == "encoder-decoder" or model.head.kind == "sequence_classification"):
        what = "an encoder-decoder" if model.shape == "encoder-decoder" else "a model that pools a whole sequence"
        raise TrainingError(f"scale.context divides single stacks, token by token, and this is {what}; use scale.shard")


def _mixers(model: spec.Transformer) -> Iterator[spec.Mixer]:
    for stack in model.stacks().values():
        for block in stack.pattern:
            for branch in block.branches:
                yield branch.mixer


def _divides(key: str, size: int, number: int, what: str) -> None:
    if number % size:
        raise TrainingError(f"{key}={size} does not divide the {number} {what} of the model; choose one that does")
