"""LoRA adapters in peft's files: W + scale · B A for each matrix that was adapted (Hu et al. 2022, section 4.1).

    adapter_config.json          ranks, scales, and the model whose matrices are changed
    adapter_model.safetensors    base_model.model.<module>.lora_A.weight [r, in] and .lora_B.weight [out, r]

Modules are the reference's. What a family's table of names does to a matrix (cut, fuse, reorder its rows) it does to
B, and where the file fuses matrices, their changes become one, of the rank of all together:

    query   B₁ A₁             [B₁  0 ]   [A₁]
    key     as it is   <->    [0   0 ] · [A₂]
    value   B₂ A₂             [0   B₂]

`merging` reads what others wrote.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from anyformer.checkpoints.atomic import staged
from anyformer.checkpoints.directory import CONFIG as MODEL_CONFIG
from anyformer.checkpoints.directory import SPEC, expressible, own_names
from anyformer.checkpoints.tensors import lines_of, to_ours, to_saved
from anyformer.checkpoints.weights import pickle_refusal, read_header, read_json
from anyformer.errors import CheckpointError
from anyformer.families.family import Family
from anyformer.families.names import Line, Transpose
from anyformer.planning.shapes import Shapes, shapes
from anyformer.spec import Transformer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
#: What peft calls the task of a head, where that decides how a model with an adapter is loaded.
TASKS = {"sequence_classification": "SEQ_CLS", "token_classification": "TOKEN_CLS", "embedding": "FEATURE_EXTRACTION"}


class LowRank(NamedTuple):
    """A change of a matrix W [out, in]: scale · B A, with A [r, in] and B [out, r]."""

    A: Tensor
    B: Tensor
    scale: float


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter and no model."""
    return (directory / CONFIG).is_file() and not any((directory / name).is_file() for name in (MODEL_CONFIG, SPEC))


def base_of(directory: Path) -> tuple[str, str | None]:
    """The model that an adapter was made for, as its config names it, and its revision on a hub, if any.

    Raises `CheckpointError` where it names none.
    """
    attributes = read_json(directory / CONFIG)
    name, revision = attributes.get("base_model_name_or_path"), attributes.get("revision")
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            f"{directory / CONFIG} names no base model (base_model_name_or_path); load the model that it was made for "
            f"and name the adapter beside it: af.load(MODEL, adapter='{directory}')"
        )
    return name, revision if isinstance(revision, str) else None


def write(
    directory: Path,
    changes: Mapping[str, LowRank],
    whole: Mapping[str, Tensor],
    *,
    spec: Transformer,
    family: str | None,
    base: str,
    revision: str | None = None,
    dropout: float = 0.0,
) -> None:
    """Save changes of a model's matrices, by our names of these (`decoder.layers.0.attention.query.weight`), and what
    takes the place of other parameters as a `whole` (a classifier's head), so that peft loads them on top of the model
    that `base` names, whose format is that of `family`.

    Changes of matrices that the family's files fuse must have one scale and one rank. All is written or nothing;
    raises `CheckpointError` if the disk refuses.
    """
    chosen, wanted = expressible(spec, family), shapes(spec)
    changed = {_module(chosen, spec, line): line for line in _touched(chosen, spec, changes)}
    fused = {module: _fused(line, changes, wanted) for module, line in changed.items()}
    replaced = {_name(chosen, spec, line): line for line in _touched(chosen, spec, whole)}
    ranks = {module: len(change.A) for module, change in fused.items()}
    alphas = {module: _plain(change.scale * len(change.A)) for module, change in fused.items()}
    rank, alpha = _usual(ranks), _usual(alphas)
    attributes = {
        "peft_type": "LORA",
        "task_type": _task(spec),
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {module: value for module, value in ranks.items() if value != rank},
        "alpha_pattern": {module: value for module, value in alphas.items() if value != alpha},
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": any(is_turned(line) for line in changed.values()),
        # Whole names: their ends alone would mean more modules than these in some models.
        "target_modules": list(changed),
        "modules_to_save": sorted({_saved_module(chosen, name) for name in replaced}) or None,
    }
    saved = {f"{PREFIX}{module}{A}": change.A for module, change in fused.items()}
    saved |= {f"{PREFIX}{module}{B}": change.B for module, change in fused.items()}
    saved |= {PREFIX + name: to_saved(line, [whole[ours] for ours in line.ours]) for name, line in replaced.items()}
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in saved.items()}
    with staged(directory) as stage:
        (stage / CONFIG).write_text(json.dumps(attributes, indent=2) + "\n", encoding="utf-8")
        save_file(ready, stage / WEIGHTS, metadata={"format": "pt"})


def read(
    directory: Path, changed: Collection[str], whole: Collection[str], *, spec: Transformer, family: str | None
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """(A and B of each of our matrices `changed`; the tensors of our parameters `whole`), as `write` saved them of the
    same model, to the bit."""
    chosen, wanted, saved = expressible(spec, family), shapes(spec), tensors(directory)
    halves: dict[str, tuple[Tensor, Tensor]] = {}
    for line in _touched(chosen, spec, changed):
        module = PREFIX + _module(chosen, spec, line)
        down, ups = saved[module + A], to_ours(_unturned(line), [saved[module + B]], wanted)
        mine = [(name, up) for name, up in zip(line.ours, ups) if name in changed]
        rank = len(down) // len(mine)
        for index, (name, up) in enumerate(mine):
            own = slice(index * rank, (index + 1) * rank)
            halves[name] = (down[own], up[:, own])
    replaced: dict[str, Tensor] = {}
    for line in _touched(chosen, spec, whole):
        replaced |= zip(line.ours, to_ours(line, [saved[PREFIX + _name(chosen, spec, line)]], wanted))
    return halves, replaced


def tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of an adapter, by their names in its file. Raises `CheckpointError` where it is not whole."""
    path, pickled = directory / WEIGHTS, directory / "adapter_model.bin"
    if not path.is_file():
        raise CheckpointError(pickle_refusal(pickled) if pickled.is_file() else f"{directory} lacks {WEIGHTS}")
    names = read_header(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in names}


def lines(family: Family | None, spec: Transformer) -> list[Line]:
    """The lines of a family's table for a spec; without a family, each of our names as it is."""
    return lines_of(spec, own_names(spec) if family is None else family.tensors(spec), shapes(spec))


def is_turned(line: Line) -> bool:
    """Whether the file keeps the matrix of a line as [in, out]. A and B are [r, in] and [out, r] even then."""
    return any(isinstance(layout, Transpose) for layout in line.entry.layout)


def _unturned(line: Line) -> Line:
    kept = tuple(layout for layout in line.entry.layout if not isinstance(layout, Transpose))
    return replace(line, entry=replace(line.entry, layout=kept))


def _touched(family: Family | None, spec: Transformer, names: Collection[str]) -> list[Line]:
    """The lines in which matrices of these names of ours stand."""
    return [line for line in lines(family, spec) if any(name in names for name in line.ours)]


def _name(family: Family | None, spec: Transformer, line: Line) -> str:
    """What the reference calls the tensor of a line; base models lack the prefix of those with heads."""
    prefix = family.prefix if family is not None and spec.head.kind == "embedding" else ""
    return line.saved[0].removeprefix(prefix)


def _module(family: Family | None, spec: Transformer, line: Line) -> str:
    return _name(family, spec, line).removesuffix(".weight")


def _saved_module(family: Family | None, name: str) -> str:
    """The module that peft keeps whole for the sake of a tensor: beside the base model a whole head, in it a layer."""
    within = family is None or (family.prefix and name.startswith(family.prefix))
    return name.rpartition(".")[0] if within else name.partition(".")[0]


def _fused(line: Line, changes: Mapping[str, LowRank], wanted: Shapes) -> LowRank:
    """The changes of the matrices of one line as one of the fused matrix."""
    assert len(line.saved) == 1 and line.entry.axis == 0, "what a file stacks takes no change of low rank"
    changed = [changes[name] for name in line.ours if name in changes]
    assert len({(change.scale, len(change.A)) for change in changed}) == 1, "fused matrices need one scale and rank"
    down = torch.cat([change.A for change in changed])
    ups, begin = [down.new_zeros(wanted[name][0], len(down)) for name in line.ours], 0
    for name, up in zip(line.ours, ups):
        if name in changes:
            end = begin + len(changes[name].A)
            up[:, begin:end] = changes[name].B
            begin = end
    return LowRank(down, to_saved(_unturned(line), ups), changed[0].scale)


def _task(spec: Transformer) -> str | None:
    if spec.head.kind == "language_model":
        return "CAUSAL_LM" if spec.encoder is None else "SEQ_2_SEQ_LM"
    return TASKS.get(spec.head.kind)


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _usual(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]
