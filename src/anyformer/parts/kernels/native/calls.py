"""The native kernels as operators of torch, each with a fake implementation, so that tracing and compilation see them
as any other operator."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import byref
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from anyformer.parts.kernels.int8_rows import Int8Rows
from anyformer.parts.kernels.native import loading as native
from anyformer.parts.kernels.native import tape

_LIBRARY = torch.library.Library("anyformer", "DEF")


@runtime_checkable
class Norm(Protocol):
    """What a kernel asks of a norm (`parts/norms.py`): its kind, as kernels.h has it, and its parameters."""

    kind: int
    eps: float
    _parameters: dict[str, Any]


def _operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register an operator of the CPU; what to call."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"anyformer::{name}", fake, lib=_LIBRARY)
    operator = getattr(torch.ops.anyformer, name).default

    def call(x: Tensor, *others: Any) -> Any:
        # Through torch's dispatcher a call costs as much again as it does itself; only who watches needs it.
        watched = type(x) is not Tensor or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
        return operator(x, *others) if watched else run(x, *others)

    return call


def _make(call: Any, *tensors: Tensor | None) -> None:
    """Make a call; on a tape, note it with the tensors that it reads and writes."""
    _make_once(call)
    if (noted := tape.running()) is not None:
        noted.append(tape.Note(call, tensors))


def _make_once(call: Any) -> None:
    library = native.library()
    assert library is not None
    tape.check(getattr(library, call.function)(byref(call)))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def strides_of(added: Tensor | None) -> tuple[int, ...]:
    """Those of what is added to scores [B or 1, H or 1, T, S], nought where it is for all."""
    if added is None:
        return (0, 0, 0)
    return tuple(0 if size == 1 else stride for size, stride in zip(added.shape[:3], added.stride()))


def _linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    format: int,
    norm: Tensor | None,
    norm_bias: Tensor | None,
    norm_kind: int,
    eps: float,
    residual: Tensor | None,
    activation: str,
    gated: bool,
) -> Tensor:
    width, outputs = x.shape[-1], weight.shape[0]
    y = x.new_empty(*x.shape[:-1], outputs // 2 if gated else outputs)
    call = native.Linear(
        x.data_ptr(),
        y.data_ptr(),
        weight.data_ptr(),
        _address(bias),
        _address(norm),
        _address(norm_bias),
        _address(residual),
        x.numel() // width,
        width,
        outputs,
        native.TYPES[x.dtype],
        format,
        norm_kind,
        native.ACTIVATIONS[activation],
        gated,
        torch.get_num_threads(),
        eps,
    )
    _make(call, x, y, weight, bias, norm, norm_bias, residual)
    return y


def _fake_linear(
    x: Tensor, weight: Tensor, bias: Any, format: Any, norm: Any, b: Any, n: Any, eps: Any, r: Any, a: Any, gated: bool
) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // 2 if gated else weight.shape[0])


def _attention(
    q: Tensor, k: Tensor, v: Tensor, V: int, added: Tensor | None, sinks: Tensor | None, scale: float, cap: float
) -> Tensor:
    B, H, T, C = q.shape
    K, S = k.shape[1], k.shape[2]
    y = q.new_empty(B, T, H, V)
    call = native.Attention(
        q.data_ptr(),
        k.data_ptr(),
        v.data_ptr(),
        y.data_ptr(),
        _address(added),
        _address(sinks),
        B,
        H,
        K,
        T,
        S,
        C,
        V,
        q.stride()[:3],
        k.stride()[:3],
        v.stride()[:3],
        strides_of(added),
        native.TYPES[q.dtype],
        native.KEPT[k.dtype],
        torch.get_num_threads(),
        scale,
        cap,
    )
    _make(call, q, k, v, y, added, sinks)
    return y.transpose(1, 2)


def _fake_attention(q: Tensor, k: Any, v: Any, V: int, a: Any, sinks: Any, scale: Any, cap: Any) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], V).transpose(1, 2)


def _rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    B, T, heads, _ = x.shape
    dim = cos.shape[-1]
    call = native.Rotary(
        x.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        B,
        T,
        heads,
        x.stride(2),
        dim,
        x.stride()[:2],
        0 if len(cos) == 1 else cos.stride(0),
        native.TYPES[x.dtype],
        interleaved,
    )
    _make(call, x, cos, sin)


def _fake_rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    return None


def _outer(x: Tensor) -> int | None:
    """How far apart the last two dimensions of x lie from those of the next index; None where that differs."""
    found: list[tuple[int, int]] = []
    for size, stride in zip(x.shape[:-2], x.stride()):
        # Of a dimension of one, torch may give any stride.
        if size > 1:
            found.append((size, stride))
    uneven = any(outer[1] != inner[0] * inner[1] for outer, inner in pairwise(found))
    return None if uneven else (found[-1][1] if found else 0)


def _normed(
    x: Tensor, norm: Tensor | None, norm_bias: Tensor | None, kind: int, eps: float, residual: Tensor | None
) -> Tensor:
    outer = _outer(x)
    assert outer is not None
    width, heads = x.shape[-1], x.shape[-2] if x.dim() > 1 else 1
    y = x.new_empty(x.shape)
    call = native.Normed(
        x.data_ptr(),
        y.data_ptr(),
        _address(norm),
        _address(norm_bias),
        _address(residual),
        x.numel() // width,
        width,
        outer,
        heads,
        x.stride(-2) if heads > 1 else 0,
        native.TYPES[x.dtype],
        kind,
        eps,
    )
    _make(call, x, y, norm, norm_bias, residual)
    return y


def _fake_normed(x: Tensor, norm: Any, norm_bias: Any, kind: Any, eps: Any, residual: Any) -> Tensor:
    return x.new_empty(x.shape)


def _keep(x: Tensor, store: Tensor, slots: Tensor | None, first: int) -> None:
    B, heads, T, C = x.shape
    call = native.Keep(
        x.data_ptr(),
        store.data_ptr(),
        _address(slots),
        B,
        heads,
        T,
        C,
        first,
        x.stride()[:3],
        store.stride()[:3],
        native.TYPES[x.dtype],
        native.KEPT[store.dtype],
    )
    _make(call, x, store, slots)


def _fake_keep(x: Tensor, store: Tensor, slots: Any, first: Any) -> None:
    return None


def _expand(blocks: Tensor, format: int, out: Tensor) -> None:
    rows, width = out.shape
    _make(native.Expand(blocks.data_ptr(), out.data_ptr(), rows, width, format, torch.get_num_threads()), blocks, out)


def _fake_expand(blocks: Tensor, format: int, out: Tensor) -> None:
    return None


_run_linear = _operator(
    "linear(Tensor x, Tensor weight, Tensor? bias, int format, Tensor? norm, Tensor? norm_bias, int norm_kind, "
    "float eps, Tensor? residual, str activation, bool gated) -> Tensor",
    _linear,
    _fake_linear,
)
_run_attention = _operator(
    "attention(Tensor q, Tensor k, Tensor v, int width, Tensor? added, Tensor? sinks, float scale, float cap) "
    "-> Tensor",
    _attention,
    _fake_attention,
)
_run_rotary = _operator(
    "rotary(Tensor(a!) x, Tensor cos, Tensor sin, bool interleaved) -> ()",
    _rotary,
    _fake_rotary,
)

_run_normed = _operator(
    "normed(Tensor x, Tensor? norm, Tensor? norm_bias, int kind, float eps, Tensor? residual) -> Tensor",
    _normed,
    _fake_normed,
)
_run_keep = _operator("keep(Tensor x, Tensor(a!) store, Tensor? slots, int first) -> ()", _keep, _fake_keep)
_run_expand = _operator("expand(Tensor blocks, int format, Tensor(a!) out) -> ()", _expand, _fake_expand)


def linear(
    x: Tensor,
    matrix: Tensor,
    format: int,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    activation: str = "",
    gated: bool = False,
) -> Tensor:
    """residual + act(norm(x) Wᵀ + b), [..., out], of x [..., in].

    matrix    [out, ...] rows as `format` stores them (ggml's number for it)
    bias      [out]
    residual  [..., out]
    gated     the rows of W are those of a gate and then those of an up projection; the result, of half the width, is
              residual + act(gate) · up

    x, bias, residual and the norm's parameters are of one type, float32 or bfloat16.
    """
    # Out here, where whoever records the call sees a copy being made.
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    if norm is None:
        return _run_linear(x, matrix, bias, format, None, None, 0, 0.0, residual, activation, gated)
    own = norm._parameters
    return _run_linear(
        x, matrix, bias, format, own["weight"], own["bias"], norm.kind, norm.eps, residual, activation, gated
    )


def attention(
    q: Tensor,
    k: Tensor | Int8Rows,
    v: Tensor | Int8Rows,
    added: Tensor | None,
    sinks: Tensor | None,
    scale: float,
    cap: float | None,
) -> Tensor:
    """softmax(cap(scale · q kᵀ) + added) v, [B, H, T, V], of queries [B, H, T, C] over keys [B, K, S, C] and values
    [B, K, S, V], whose channels lie together, both of one type or both in 8 bits.

    added  float32 [B or 1, H or 1, T, S]; -infinity hides
    sinks  [H], of q's type: the logit of a key without a value

    A query that sees nothing gives zeros.
    """
    if isinstance(k, Int8Rows) and isinstance(v, Int8Rows):
        return _run_attention(q, k.rows, v.rows, v.width, added, sinks, scale, cap or 0.0)
    return _run_attention(q, k, v, v.shape[3], added, sinks, scale, cap or 0.0)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> None:
    """Turn heads x [B, T, heads, C], which may be a view, in place by the tables [B or 1, T, 1, dim] of their
    positions."""
    _run_rotary(x, cos, sin, interleaved)


def normed(x: Tensor, norm: Norm, residual: Tensor | None = None) -> Tensor:
    """residual + norm(x), [..., D]; the last three dimensions of x may be a view, its numbers lie together."""
    own = norm._parameters
    x, residual = x if _outer(x) is not None else x.contiguous(), None if residual is None else residual.contiguous()
    return _run_normed(x, own["weight"], own["bias"], norm.kind, norm.eps, residual)


def keep(x: Tensor, store: Tensor, slots: Tensor | None, first: int) -> None:
    """Put x [B, heads, T, C] into the slots of a store [B, heads, slots, C]: those that `slots` [B, T] says (-1: none),
    else `first` and those that follow. A store of int8 keeps them in 8 bits (`int8_rows.py`)."""
    _run_keep(x, store, slots, first)


def added(x: Tensor, residual: Tensor) -> Tensor:
    """residual + x; by torch where they differ in shape or type."""
    if x.shape != residual.shape or x.dtype != residual.dtype:
        return residual + x
    x = x if _outer(x) is not None else x.contiguous()
    return _run_normed(x, None, None, 0, 0.0, residual.contiguous())


def expand(blocks: Tensor, format: int, out: Tensor) -> None:
    """Write the numbers that rows in blocks [rows, row_bytes] stand for into `out`, float32 [rows, width], both
    contiguous: those of `parts/blocks.py`'s `dequantize`, but for the last rounding of a sum."""
    _run_expand(blocks, format, out)
