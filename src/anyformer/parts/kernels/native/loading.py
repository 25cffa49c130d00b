"""The compiled library: its file, its structures, and whether it is there."""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path

import torch

from anyformer.parts.kernels.native import building

#: What inputs and outputs may be, by ggml's numbers for them.
TYPES = {torch.float32: 0, torch.bfloat16: 30}
#: What keys and values may be kept as.
KEPT = {**TYPES, torch.int8: 24}
#: Kinds of norms, together where both hold: with OFFSET the factor is 1 + weight.
RMS, LAYER, OFFSET = 1, 2, 4
ACTIVATIONS = {"": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3, "silu": 4, "sigmoid": 5, "tanh": 6, "clamped": 7}

_POINTER, _I64, _I32, _F32 = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Linear(ctypes.Structure):
    """`struct Linear` of kernels.h."""

    function = "anyformer_linear"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "y", "weight", "bias", "norm", "norm_bias", "residual")),
        *((name, _I64) for name in ("rows", "inputs", "outputs")),
        *((name, _I32) for name in ("type", "format", "norm_kind", "activation", "gated", "threads")),
        ("eps", _F32),
    )


class Attention(ctypes.Structure):
    """`struct Attention` of kernels.h."""

    function = "anyformer_attention"

    _fields_ = (
        *((name, _POINTER) for name in ("q", "k", "v", "y", "added", "sinks")),
        *((name, _I64) for name in ("B", "H", "K", "T", "S", "C", "V")),
        *((name, _I64 * 3) for name in ("q_strides", "k_strides", "v_strides", "added_strides")),
        *((name, _I32) for name in ("type", "kept", "threads")),
        *((name, _F32) for name in ("scale", "cap")),
    )


class Rotary(ctypes.Structure):
    """`struct Rotary` of kernels.h."""

    function = "anyformer_rotary"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "cos", "sin")),
        *((name, _I64) for name in ("B", "T", "heads", "C", "dim")),
        *(("x_strides", _I64 * 2), ("table_stride", _I64)),
        *((name, _I32) for name in ("type", "interleaved")),
    )


class Normed(ctypes.Structure):
    """`struct Normed` of kernels.h."""

    function = "anyformer_normed"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "y", "norm", "norm_bias", "residual")),
        *((name, _I64) for name in ("rows", "width", "x_stride", "heads", "head_stride")),
        *((name, _I32) for name in ("type", "norm_kind")),
        ("eps", _F32),
    )


class Keep(ctypes.Structure):
    """`struct Keep` of kernels.h."""

    function = "anyformer_keep"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "store", "slots")),
        *((name, _I64) for name in ("B", "heads", "T", "C", "first")),
        *((name, _I64 * 3) for name in ("x_strides", "store_strides")),
        *((name, _I32) for name in ("type", "kept")),
    )


class Expand(ctypes.Structure):
    """`struct Expand` of kernels.h."""

    function = "anyformer_expand"

    _fields_ = (
        *((name, _POINTER) for name in ("weight", "y")),
        *((name, _I64) for name in ("rows", "inputs")),
        *((name, _I32) for name in ("format", "threads")),
    )


class Choose(ctypes.Structure):
    """`struct Choose` of kernels.h."""

    function = "anyformer_choose"

    _fields_ = (
        *((name, _POINTER) for name in ("logits", "correction", "shares", "weight", "chosen")),
        *((name, _I64) for name in ("rows", "experts", "top_k", "groups", "top_groups")),
        *((name, _I32) for name in ("type", "sigmoid", "normalize")),
        ("factor", _F32),
    )


class Experts(ctypes.Structure):
    """`struct Experts` of kernels.h."""

    function = "anyformer_experts"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "y", "weight", "chosen", "gate", "up", "down")),
        *((name, _POINTER) for name in ("gate_bias", "up_bias", "down_bias")),
        *((name, _I64) for name in ("rows", "top_k", "experts", "width", "hidden")),
        *((name, _I32) for name in ("type", "gate_format", "up_format", "down_format", "activation", "threads")),
        *((name, _F32) for name in ("limit", "gain")),
    )


class Heads(ctypes.Structure):
    """`struct Heads` of kernels.h."""

    function = "anyformer_heads"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "weight", "y")),
        *((name, _I64) for name in ("rows", "heads", "inputs", "outputs", "x_stride", "head_stride")),
        *((name, _I32) for name in ("type", "made", "transposed", "threads")),
    )


class Spans(ctypes.Structure):
    """`struct Spans` of kernels.h."""

    function = "anyformer_spans"

    _fields_ = (
        *((name, _POINTER) for name in ("q", "k", "v", "y", "log_sums", "first", "last", "d_y", "d_q", "d_k", "d_v")),
        *((name, _I64) for name in ("B", "H", "K", "T", "S", "C", "V", "span_stride")),
        *((name, _I64 * 3) for name in ("q_strides", "k_strides", "v_strides", "d_y_strides")),
        ("threads", _I32),
        ("scale", _F32),
    )


class NormRows(ctypes.Structure):
    """`struct NormRows` of kernels.h."""

    function = "anyformer_norm_rows"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "weight", "y", "d_y", "d_x", "d_weight")),
        *((name, _I64) for name in ("rows", "width")),
        *((name, _I32) for name in ("norm_kind", "threads")),
        ("eps", _F32),
    )


class ActivatedRows(ctypes.Structure):
    """`struct ActivatedRows` of kernels.h."""

    function = "anyformer_activated_rows"

    _fields_ = (
        *((name, _POINTER) for name in ("x", "up", "y", "d_y", "d_x", "d_up")),
        ("count", _I64),
        *((name, _I32) for name in ("type", "activation", "threads")),
    )


class Call(ctypes.Structure):
    """`struct Call` of kernels.h."""

    _fields_ = (("kind", _I32), ("it", _POINTER))


#: Of calls that can be made again, in the order of `enum Kind`.
STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    Linear,
    Attention,
    Rotary,
    Normed,
    Keep,
    Expand,
    Choose,
    Experts,
    Heads,
)
#: Of those for many rows.
OF_MANY_ROWS: tuple[type[ctypes.Structure], ...] = (Spans, NormRows, ActivatedRows)


def load(path: Path) -> ctypes.CDLL:
    """The library in a file, its functions described."""
    found = ctypes.CDLL(str(path))
    for structure in (*STRUCTURES, *OF_MANY_ROWS):
        function = getattr(found, str(structure.function))
        function.argtypes, function.restype = (ctypes.POINTER(structure),), _I32
    found.anyformer_replay.argtypes, found.anyformer_replay.restype = (ctypes.POINTER(Call), _I64), _I32
    found.anyformer_narrow_pays.argtypes, found.anyformer_narrow_pays.restype = (), _I32
    found.anyformer_instructions.argtypes, found.anyformer_instructions.restype = (), ctypes.c_char_p
    found.anyformer_use.argtypes, found.anyformer_use.restype = (ctypes.c_char_p,), _I32
    return found


@cache
def library() -> ctypes.CDLL | None:
    """The kernels of these sources; None, said once, where nobody compiled them."""
    path = Path(__file__).parent / building.library_name()
    if path.is_file():
        return load(path)
    warnings.warn(
        "anyformer runs on plain torch, for its native kernels were not compiled: text comes more slowly. With a C++ "
        "compiler installed, `python -m anyformer.parts.kernels.native.building` makes them",
        stacklevel=2,
    )
    return None


@cache
def narrow_pays() -> bool:
    """Whether this machine multiplies bfloat16 faster than float32; taken for true where nobody can say."""
    found = library()
    return found is None or bool(found.anyformer_narrow_pays())
