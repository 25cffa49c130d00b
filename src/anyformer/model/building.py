"""From a spec, or from a checkpoint, to a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from anyformer import machine, planning, spec
from anyformer.checkpoints import Checkpoint
from anyformer.errors import CheckpointError, InputError, SpecError
from anyformer.model.laid import is_laid, place
from anyformer.model.transformer import Transformer
from anyformer.parts.attention import Attention

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}


def build(
    description: spec.Transformer,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    seed: int | None = None,
) -> Transformer:
    """A model with fresh weights, drawn as the spec's initialization says; with a seed, the same ones each time.

    Raises `SpecError` for what is no spec.
    """
    if not isinstance(description, spec.Transformer):
        raise SpecError(f"build takes a spec, such as af.families.llama('tiny'), not {description!r}; load takes names")
    model = unfilled(description, torch.float32, device)
    draw(model, seed)
    return model.to(dtype)


def unfilled(description: spec.Transformer, dtype: torch.dtype, device: torch.device | str) -> Transformer:
    """A model whose parameters hold whatever the memory held; made without drawing any number."""
    model = hollow(description, dtype)
    materialize(model, device)
    return model


def hollow(description: spec.Transformer, dtype: torch.dtype) -> Transformer:
    """A model whose parameters have shapes and no memory: on torch's meta device, to be laid over processes."""
    with torch.device("meta"):
        return Transformer(description).to(dtype)


def materialize(model: Transformer, device: torch.device | str) -> None:
    """Give the parameters of a hollow model memory, which holds whatever it held; where they lie over many processes,
    for this one's part of each."""
    model._apply(partial(_empty, device=device))
    model.tie()  # leaving the meta device makes two parameters of one


def _empty(tensor: Tensor, device: torch.device | str) -> Tensor:
    if is_laid(tensor):
        return torch.empty_like(tensor, device=device)
    # `empty_like` asks torch's reference operators what is like what, and importing them takes most of a second.
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def draw(model: Transformer, seed: int | None = None) -> None:
    """Draw every parameter anew as the model's spec says; with a seed, the same numbers each time, however many
    processes the model lies over."""
    generator = torch.Generator(model.device)
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    with torch.no_grad():
        initialize(model, model.spec.initialization, generator)


def initialize(model: Transformer, how: spec.Initialization, generator: torch.Generator) -> None:
    """Draw every parameter anew."""
    drawn: set[int] = set()
    writes = ("output", "down")
    for stack_name, stack in (("encoder", model.encoder), ("decoder", model.decoder)):
        depth = 0 if stack is None else len(stack.layers)
        if stack is None:
            continue
        for name, parameter in stack.named_parameters(prefix=stack_name):
            parts = name.split(".")
            to_stream = "layers" in parts and (parts[-1] in writes or (len(parts) > 1 and parts[-2] in writes))
            scale = (2 * depth) ** -0.5 if how.depth_scaled and to_stream else 1.0
            _draw(name, parameter, how, scale, generator)
            drawn.add(id(parameter))
    if model.head is not None:
        for name, parameter in model.head.named_parameters(prefix="head"):
            if id(parameter) not in drawn:
                _draw(name, parameter, how, 1.0, generator)
                drawn.add(id(parameter))
    for module in model.modules():
        if hasattr(module, "unit_offset"):
            start = 0.0 if module.unit_offset else 1.0
            if isinstance(module.weight, nn.Parameter):
                module.weight.fill_(start)
        if isinstance(module, Attention) and how.std is None:
            # Scores begin with the same spread whatever scales them (Raffel et al. 2020: not at all).
            module.query.weight.mul_(module.head_dim**-0.5 / module.scale)
    assert len(drawn) == len(list(model.parameters())), "a parameter was left undrawn"


def _draw(
    name: str, parameter: nn.Parameter, how: spec.Initialization, scale: float, generator: torch.Generator
) -> None:
    if parameter.dim() < 2 or name.endswith("bias"):
        parameter.zero_()
        return
    std = how.std if how.std is not None else parameter.shape[-1] ** -0.5
    if "embeddings" in name and how.embedding_std is not None:
        std = how.embedding_std
    if not is_laid(parameter):
        parameter.normal_(0.0, std * scale, generator=generator)
        return
    # All of it, whatever part is kept, so that the numbers that follow are the same in every process.
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device=generator.device)
    place(parameter, whole.normal_(0.0, std * scale, generator=generator))


def best_device() -> torch.device:
    """The accelerator that torch finds, else the CPU."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return found if found is not None else torch.device("cpu")


def load(
    reference: str | os.PathLike[str],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "auto",
    *,
    quantize: str | None = None,
    ignore: Sequence[str] = (),
    revision: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> Transformer:
    """A model from wherever a model is named: a run or Hugging Face directory, a `.gguf` file, a repository on a hub
    (`org/name`, `org/name/file.gguf`), or a family's preset (`llama:135m`, fresh weights). A LoRA `adapter` in peft's
    files, a directory or a repository, is merged into its weights; one may also be named as the model itself, and then
    changes the one that its config names.

    In the dtype of the file (float32 for quantised GGUF) unless `dtype` says otherwise; in evaluation mode, gradients
    on. `quantize` keeps matrices in few bits instead: "int8" and "int4" quantise them, "keep" computes with the blocks
    that a GGUF file holds, from the mapped file itself, and with 8 bits in place of formats that have no products here
    ("auto": "keep" on a CPU, for a file that is quantised). `model.quantization` then says what became of each, and
    such a model has no gradients. `ignore` names config attributes or tensors to pass over; `revision` is the
    repository's branch, tag or commit, which may stand in the reference as well (`org/name@revision`).

    Raises `CheckpointError` or `SpecError` naming what does not fit, and `InputError` for what cannot be quantised as
    asked, and where memory has no room for the weights.
    """
    from anyformer import checkpoints, families

    chosen = dtype_of(dtype) if isinstance(dtype, str) else dtype
    where = best_device() if device == "auto" else torch.device(device)
    reference = os.fspath(reference)
    preset = families.preset(reference)
    if preset is not None and revision is None and adapter is None:
        _must_hold(reference, preset, chosen or torch.float32, where, fresh=True)
        model = build(preset, dtype=chosen or torch.float32, device=where)
        model.family = reference.split(":")[0]
        model.generation = dict(families.named(model.family).generation)
        if quantize in (None, "auto"):
            return model.eval()
        drawn = dict(model.named_parameters())
        carried = checkpoints.Carried()
        checkpoint = checkpoints.Checkpoint(
            preset, drawn, model.family, model.generation, None, carried, model.dtype, reference
        )
    else:
        fetched = checkpoints.fetch(reference, ignore=ignore, revision=revision)
        checkpoint = checkpoints.open(fetched, ignore=ignore, adapter=None if adapter is None else os.fspath(adapter))
    chosen = chosen or checkpoint.dtype
    if quantize == "auto":
        quantize = "keep" if checkpoint.quantised and where.type == "cpu" else None
    if quantize is None:
        _must_hold(reference, checkpoint.spec, chosen, where, fresh=False)
        model = unfilled(checkpoint.spec, chosen, where)
    else:
        from anyformer.model import quantizing  # here, because most models are not quantised

        model = quantizing.unfilled(checkpoint, quantize, chosen, where)
    fill(model, checkpoint.tensors)
    inherit(model, checkpoint)
    return model.eval()


def _must_hold(
    reference: str, description: spec.Transformer, dtype: torch.dtype, device: torch.device, *, fresh: bool
) -> None:
    """Raises `InputError`, with the figures, where a model's weights have no room in the memory of a device. `fresh`
    weights are drawn whole before they can be quantised."""
    left, numbers = machine.available(device), planning.parameters(description).total
    if left is None or numbers * dtype.itemsize <= left:
        return
    less = ["bfloat16 (dtype)"] if dtype.itemsize > 2 else []
    less += [] if fresh else ["int8 or int4 (quantize)"]
    raise InputError(
        f"the {numbers:,} weights of {reference} take {numbers * dtype.itemsize / 1e9:,.1f} GB in "
        f"{str(dtype).removeprefix('torch.')}, and of this machine's memory {left / 1e9:,.1f} GB are left; "
        f"{'they take less in ' + ', '.join(less) if less else 'take a smaller model'}"
    )


def inherit(model: Transformer, checkpoint: Checkpoint) -> None:
    """Give a model what its checkpoint holds besides numbers: tokenizer, defaults of decoding, origin and the like."""
    model.tokenizer, model.generation = checkpoint.tokenizer, dict(checkpoint.generation)
    model.family, model.carried, model.origin = checkpoint.family, checkpoint.carried, checkpoint.origin


def dtype_of(name: str) -> torch.dtype:
    """The floating-point dtype of that name. Raises `InputError` listing them if there is none."""
    if name not in DTYPES:
        raise InputError(f"no dtype for weights is called '{name}'; there are {', '.join(DTYPES)}")
    return DTYPES[name]


@torch.no_grad()
def fill(model: Transformer, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors, by our names, into the model's parameters, each read once."""
    for name, parameter in model.named_parameters():
        if name not in tensors:
            raise CheckpointError(f"the checkpoint has no tensor for '{name}'; it is not whole")
        place(parameter, tensors[name])
