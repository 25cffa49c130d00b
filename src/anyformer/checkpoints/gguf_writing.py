"""Writing a checkpoint as a GGUF file, in float types or in blocks: metadata, vocabulary, and tensors made one at a
time."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from anyformer.checkpoints.atomic import staged_file
from anyformer.checkpoints.gguf import TENSOR_TYPES
from anyformer.checkpoints.gguf_reading import NO_VOCABULARY, TOKEN_NAMES
from anyformer.checkpoints.keeping import keeps_rows, saved_blocks
from anyformer.checkpoints.quantizing import fitting, quantize
from anyformer.checkpoints.tensors import Lazy, lines_of, unload
from anyformer.errors import CheckpointError, SpecError
from anyformer.families import gguf, registry
from anyformer.families.config import SPECIAL_TOKENS
from anyformer.families.family import Family
from anyformer.families.names import Table, fill
from anyformer.parts.blocks import FORMATS, Blocks, Format
from anyformer.planning.shapes import shapes
from anyformer.spec import EmbeddingHead, Learned, Transformer

if TYPE_CHECKING:
    from gguf import GGUFWriter

    from anyformer.text import Tokenizer

#: The float types that matrices are written in: torch's and ggml's name for them.
FLOATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
#: What `general.file_type` says of a file most of which is of a type.
_FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q4_K": 14, "Q6_K": 18, "BF16": 32}
#: Of how GGUF's blocks are laid out, the version that all files of today have.
_BLOCKS_VERSION = 2
#: The tables of tokens.
_TABLES = ("token_embd.weight", "output.weight")
#: Matrices that llama.cpp wants in float32, as it does all vectors.
_SMALL = ("position_embd.", "token_types.", ".ffn_gate_inp.", ".attn_rel_b.", "_exps.bias")


def write_gguf(
    path: str | Path,
    *,
    spec: Transformer,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    format: Format | None = None,
    blocks: Mapping[str, Blocks] | None = None,
    family: str | None = None,
    generation: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    name: str = "",
) -> dict[str, str]:
    """Write a model as a GGUF file, whole or not at all; a file of that name is replaced. Gives each tensor's type.

    `tensors` are under our names, and read one at a time. Matrices are written in `format`, or the nearest one that
    fits their rows (`quantizing.fitting`), or else in `dtype` (float32, float16 or bfloat16); vectors and what is small
    in float32. Of tensors that are quantised already, the `blocks` are written as they are where they are of that
    format, and without a `format` wherever there are any. The file is of the `family`'s architecture if that has words
    for the spec, or of any other's; it holds the tokenizer's vocabulary, or none without a tokenizer.

    Raises `SpecError` naming what GGUF has no words for, `TextError` for a tokenizer that it cannot hold, and
    `CheckpointError` if the tensors are not the spec's or the disk refuses.
    """
    if dtype not in FLOATS:
        known = ", ".join(str(each).removeprefix("torch.") for each in FLOATS)
        raise CheckpointError(f"a GGUF file holds {known}, not {str(dtype).removeprefix('torch.')}; choose one of them")
    spec, tensors = _from_zero(spec, tensors)
    chosen, written = expressed(spec, family)
    assert chosen.gguf is not None
    blank, table = _blank(chosen, spec, written), chosen.gguf.tensors(spec)
    kept = _kept(spec, table, blocks or {}, format)
    kinds = {each: kept[each].kind if each in kept else _kind(each, blank[each], dtype, format) for each in blank}
    metadata = {**written.metadata, "general.type": "model", "general.file_type": _file_type(kinds, dtype)}
    metadata |= {"general.quantization_version": _BLOCKS_VERSION} if FORMATS.keys() & kinds.values() else {}
    metadata |= {"general.name": name} if name else {}
    metadata |= _vocabulary(tokenizer, spec.output.embeddings.vocabulary)
    metadata |= _special_tokens(generation or {}, tokenizer, written.metadata["general.architecture"])
    # Nothing reads the tensors whose blocks are written as they are.
    absent = {ours: torch.empty(shapes(spec)[ours], device="meta") for each in kept.values() for ours in each.ours}
    saved, _ = unload(ChainMap(absent, tensors), spec, table)  # type: ignore[arg-type]
    small = {key: partial(torch.tensor, values, dtype=torch.float32) for key, values in written.tensors.items()}
    numbers = Lazy({**{key: partial(saved.__getitem__, key) for key in saved}, **small})
    makers = {each: partial(_bytes, numbers, each, kinds[each]) for each in blank}
    makers |= {each: kept[each].make for each in kept}
    described = {each: _Described(tensor.shape, kinds[each]) for each, tensor in blank.items()}
    with staged_file(Path(path), sum(each.size for each in described.values())) as aside:
        _write(aside, metadata, described, Lazy(makers))
    return kinds


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
    if spec.decoder is None and not isinstance(spec.head, EmbeddingHead):
        expressed(spec.replace(head=EmbeddingHead()), family)  # so that nothing else is in the way
        raise SpecError(f"a GGUF file holds an encoder without its {spec.head.kind} head{_headless(first)}")
    raise reasons[0] if first else SpecError("no family's GGUF architecture has words for this model")


def _headless(families: Sequence[Family]) -> str:
    """How a checkpoint of the family is read without its head."""
    names = [name for each in families for name, head in each.architectures.items() if head == "embedding"]
    return f'; "architectures": ["{names[0]}"] in its config.json leaves that out' if names else ""


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
        raise SpecError(f"{family.gguf.architecture} files have no tensor for {min(homeless)}")
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


class _Described(NamedTuple):
    """A tensor of the file to be written: its shape, rows first, and type."""

    shape: torch.Size
    kind: str

    @property
    def size(self) -> int:
        """In bytes."""
        type_ = next(each for each in TENSOR_TYPES.values() if each.name == self.kind)
        return self.shape.numel() // type_.elements * type_.size


class _Kept(NamedTuple):
    """A tensor of the file to be written that is put together of blocks: their type, our tensors, and its bytes."""

    kind: str
    ours: tuple[str, ...]
    make: Callable[[], Tensor]


def _kept(spec: Transformer, table: Table, blocks: Mapping[str, Blocks], format: Format | None) -> dict[str, _Kept]:
    """The tensors that are written from blocks as they are."""
    wanted, found = shapes(spec), {}
    for line in lines_of(spec, table, wanted):
        if not keeps_rows(line, wanted) or not all(ours in blocks for ours in line.ours):
            continue
        formats = {blocks[ours].format for ours in line.ours}
        name, width = line.saved[0], wanted[line.ours[0]][-1]
        if len(formats) == 1 and (format is None or formats == {fitting(format, width, table=name in _TABLES)}):
            found[name] = _Kept(formats.pop().name, line.ours, partial(saved_blocks, line, blocks))
    return found


def _kind(name: str, tensor: Tensor, dtype: torch.dtype, format: Format | None) -> str:
    """ggml's name for the type in which a tensor is written."""
    if tensor.ndim < 2 or any(part in name for part in _SMALL):
        return FLOATS[torch.float32]
    found = None if format is None else fitting(format, tensor.shape[-1], table=name in _TABLES)
    return FLOATS[dtype] if found is None else found.name


def _file_type(kinds: Mapping[str, str], dtype: torch.dtype) -> int:
    """What most matrices are in."""
    blocks = Counter(kind for name, kind in kinds.items() if kind in FORMATS and name not in _TABLES)
    return _FILE_TYPES[blocks.most_common(1)[0][0] if blocks else FLOATS[dtype]]


def _bytes(tensors: Mapping[str, Tensor], name: str, kind: str) -> Tensor:
    """A tensor as the file has it."""
    if kind in FORMATS:
        try:
            return quantize(tensors[name], FORMATS[kind]).data
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
    dtype = next(dtype for dtype, float_ in FLOATS.items() if float_ == kind)
    ready = tensors[name].detach().to("cpu", dtype).contiguous()
    return ready.view(torch.int16) if dtype == torch.bfloat16 else ready


def _write(
    path: Path, metadata: Mapping[str, Any], described: Mapping[str, _Described], data: Mapping[str, Tensor]
) -> None:
    from gguf import GGUFWriter  # here, because only writing needs it
    from gguf.constants import GGMLQuantizationType

    writer = GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for name, each in described.items():
        kind = GGMLQuantizationType[each.kind]
        writer.add_tensor_info(name, tuple(each.shape), np.dtype(np.float32), each.size, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in described:
            writer.write_tensor_data(data[name].contiguous().numpy())
    finally:
        writer.close()


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
