"""Writing a checkpoint as a GGUF file in float types: metadata, vocabulary, and tensors made one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from anyformer.checkpoints.atomic import staged_file
from anyformer.checkpoints.gguf_reading import NO_VOCABULARY, TOKEN_NAMES
from anyformer.checkpoints.tensors import Lazy, unload
from anyformer.errors import CheckpointError, SpecError
from anyformer.families import gguf, registry
from anyformer.families.config import SPECIAL_TOKENS
from anyformer.families.family import Family
from anyformer.families.names import fill
from anyformer.planning.shapes import shapes
from anyformer.spec import Learned, Transformer

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from anyformer.text import Tokenizer

#: The types that matrices are written in: torch's, ggml's name, and the number that `general.file_type` has for it.
FLOATS = {torch.float32: ("F32", 0), torch.float16: ("F16", 1), torch.bfloat16: ("BF16", 32)}
#: Matrices that llama.cpp wants in float32, as it does all vectors.
_SMALL = ("position_embd.", "token_types.", ".ffn_gate_inp.", ".attn_rel_b.", "_exps.bias")


def write_gguf(
    path: str | Path,
    *,
    spec: Transformer,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    family: str | None = None,
    generation: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    name: str = "",
) -> None:
    """Write a model as a GGUF file, whole or not at all; a file of that name is replaced.

    `tensors` are under our names, and read one at a time. Matrices are written in `dtype` (float32, float16 or
    bfloat16), vectors in float32. The file is of the `family`'s architecture if that has words for the spec, or of any
    other's; it holds the tokenizer's vocabulary, or none without a tokenizer.

    Raises `SpecError` naming what GGUF has no words for, `TextError` for a tokenizer that it cannot hold, and
    `CheckpointError` if the tensors are not the spec's or the disk refuses.
    """
    if dtype not in FLOATS:
        known = ", ".join(str(each).removeprefix("torch.") for each in FLOATS)
        raise CheckpointError(f"a GGUF file holds {known}, not {str(dtype).removeprefix('torch.')}; choose one of them")
    spec, tensors = _from_zero(spec, tensors)
    chosen, written = expressed(spec, family)
    assert chosen.gguf is not None
    metadata = {**written.metadata, "general.type": "model", "general.file_type": FLOATS[dtype][1]}
    metadata |= {"general.name": name} if name else {}
    metadata |= _vocabulary(tokenizer, spec.output.embeddings.vocabulary)
    metadata |= _special_tokens(generation or {}, tokenizer, written.metadata["general.architecture"])
    saved, _ = unload(tensors, spec, chosen.gguf.tensors(spec))
    small = {key: partial(torch.tensor, values, dtype=torch.float32) for key, values in written.tensors.items()}
    blank = _blank(chosen, spec, written)
    with staged_file(Path(path)) as aside:
        _write(
            aside, metadata, Lazy({**{key: partial(saved.__getitem__, key) for key in saved}, **small}), blank, dtype
        )


def _from_zero(spec: Transformer, tensors: Mapping[str, Tensor]) -> tuple[Transformer, Mapping[str, Tensor]]:
    """The same model with its table of learned positions cut to begin at position nought, as GGUF has it (RoBERTa's
    begins after the rows of ids that are no positions)."""
    stack = spec.output
    if not isinstance(stack.embeddings.position, Learned) or not (offset := stack.embeddings.position.offset):
        return spec, tensors
    side = "encoder" if spec.decoder is None else "decoder"
    name, position = f"{side}.embeddings.positions.weight", stack.embeddings.position.replace(offset=0)
    cut = stack.replace(embeddings=stack.embeddings.replace(position=position))
    makers = {**{each: partial(tensors.__getitem__, each) for each in tensors}, name: lambda: tensors[name][offset:]}
    return spec.replace(**{side: cut}), Lazy(makers)


def expressed(spec: Transformer, family: str | None = None) -> tuple[Family, gguf.Written]:
    """The family to write a GGUF file by, and what the file says of the spec: that family, or the first that loses
    nothing. Raises `SpecError` naming what GGUF has no words for."""
    first = [registry.named(family)] if family is not None else []
    others = [each for each in registry.registered().values() if each.gguf is not None and each not in first]
    reasons = []
    for candidate in (*first, *others):
        try:
            return candidate, expressed_by(candidate, spec)
        except SpecError as error:
            reasons.append(error)
    raise reasons[0] if first else SpecError("no family's GGUF architecture has words for this model")


def expressed_by(family: Family, spec: Transformer) -> gguf.Written:
    """What a GGUF file of the family's architecture says of a spec, once reading it is seen to give the spec again.
    Raises `SpecError` naming what it has no words for."""
    written = gguf.write(family, spec)
    saved = {name: tuple(tensor.shape) for name, tensor in _blank(family, spec, written).items()}
    again = gguf.read(written.metadata, saved, written.tensors.__getitem__, "the GGUF file to be written")[1]
    gguf.check(spec, again)
    return written


def _blank(family: Family, spec: Transformer, written: gguf.Written) -> dict[str, Tensor]:
    """The tensors of the file to be written, without numbers."""
    assert family.gguf is not None
    ours, table = shapes(spec), family.gguf.tensors(spec)
    if homeless := ours.keys() - {name for line in fill(table, ours) for name in line.ours}:
        advice = "; they hold an encoder alone, so give one with an embedding head" if spec.decoder is None else ""
        raise SpecError(f"{family.gguf.architecture} files have no tensor for {min(homeless)}{advice}")
    saved, _ = unload({name: torch.empty(shape, device="meta") for name, shape in ours.items()}, spec, table)
    small = {name: torch.empty(len(values), device="meta") for name, values in written.tensors.items()}
    return {**saved, **small}


def _vocabulary(tokenizer: Tokenizer | None, size: int) -> dict[str, Any]:
    if tokenizer is None:
        return {"tokenizer.ggml.model": NO_VOCABULARY}
    from anyformer.text.gguf_writing import to_gguf  # here, because not everything that writes a file wants tokenizers

    return to_gguf(tokenizer, size)


def _special_tokens(generation: Mapping[str, Any], tokenizer: Tokenizer | None, architecture: str) -> dict[str, Any]:
    """The ids that generation begins and ends with; of those that end it, the tokenizer's comes first, and the file has
    room for three."""
    ids = {token: generation.get(f"{token}_token_id") for token in SPECIAL_TOKENS}
    ends = ids.pop("eos")
    ends = list(ends) if isinstance(ends, list | tuple) else [] if ends is None else [ends]
    first = [tokenizer.eos] if tokenizer is not None and tokenizer.eos in ends else []
    ends = list(dict.fromkeys([*first, *ends]))
    names = {token: f"tokenizer.ggml.{TOKEN_NAMES.get(token, token)}_token_id" for token in ids}
    names["decoder_start"] = f"{architecture}.decoder_start_token_id"
    found = {names[token]: id for token, id in ids.items() if id is not None}
    return {**found, **{f"tokenizer.ggml.{name}_token_id": id for name, id in zip(("eos", "eot", "eom"), ends)}}


def _write(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    blank: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> None:
    from gguf import GGUFWriter  # here, because only writing needs it
    from gguf.constants import GGMLQuantizationType

    writer = GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    types = {name: _type(name, tensor, dtype) for name, tensor in blank.items()}
    for name, tensor in blank.items():
        kind = GGMLQuantizationType[FLOATS[types[name]][0]]
        size = tensor.numel() * types[name].itemsize
        writer.add_tensor_info(name, tuple(tensor.shape), np.dtype(np.float32), size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in blank:
            ready = tensors[name].detach().to("cpu", types[name]).contiguous()
            writer.write_tensor_data((ready.view(torch.int16) if ready.dtype == torch.bfloat16 else ready).numpy())
    finally:
        writer.close()


def _type(name: str, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if tensor.ndim < 2 or any(part in name for part in _SMALL) else dtype


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
