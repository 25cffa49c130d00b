"""The native kernels of mixtures of experts, as operators of torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anyformer.parts.kernels.native import loading as native
from anyformer.parts.kernels.native.calls import _address, _make, _operator


def _choose(
    logits: Tensor,
    top_k: int,
    normalize: bool,
    sigmoid: bool,
    correction: Tensor | None,
    groups: int,
    top_groups: int,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    shares, weight, chosen = _fake_choose(logits, top_k)
    rows, experts = logits.shape
    call = native.Choose(
        logits.data_ptr(),
        _address(correction),
        shares.data_ptr(),
        weight.data_ptr(),
        chosen.data_ptr(),
        rows,
        experts,
        top_k,
        groups,
        top_groups,
        native.TYPES[logits.dtype],
        sigmoid,
        normalize,
        factor,
    )
    _make(call, logits, correction, shares, weight, chosen)
    return shares, weight, chosen


def _fake_choose(logits: Tensor, top_k: int, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    each = (len(logits), top_k)
    return (
        logits.new_empty(logits.shape, dtype=torch.float32),
        logits.new_empty(each, dtype=torch.float32),
        logits.new_empty(each, dtype=torch.int64),
    )


def _experts(
    x: Tensor,
    weight: Tensor,
    chosen: Tensor,
    matrices: Sequence[Tensor],
    formats: Sequence[int],
    biases: Sequence[Tensor | None],
    activation: str,
    limit: float,
    gain: float,
) -> Tensor:
    rows, width = x.shape
    y = x.new_empty(x.shape)
    gate, up, down = (None, *matrices)[-3:]
    gate_bias, up_bias, down_bias = (None, *biases)[-3:]
    assert up is not None
    call = native.Experts(
        x.data_ptr(),
        y.data_ptr(),
        weight.data_ptr(),
        chosen.data_ptr(),
        _address(gate),
        _address(up),
        _address(down),
        _address(gate_bias),
        _address(up_bias),
        _address(down_bias),
        rows,
        chosen.shape[1],
        len(up),
        width,
        up.shape[1],
        native.TYPES[x.dtype],
        formats[0],
        formats[-2],
        formats[-1],
        native.ACTIVATIONS[activation],
        torch.get_num_threads(),
        limit,
        gain,
    )
    _make(call, x, y, weight, chosen, *matrices, *biases)
    return y


def _fake_experts(x: Tensor, w: Any, c: Any, m: Any, f: Any, b: Any, a: Any, limit: Any, gain: Any) -> Tensor:
    return x.new_empty(x.shape)


_run_choose = _operator(
    "choose(Tensor logits, int top_k, bool normalize, bool sigmoid, Tensor? correction, int groups, int top_groups, "
    "float factor) -> (Tensor, Tensor, Tensor)",
    _choose,
    _fake_choose,
)
_run_experts = _operator(
    "experts(Tensor x, Tensor weight, Tensor chosen, Tensor[] matrices, int[] formats, Tensor?[] biases, "
    "str activation, float limit, float gain) -> Tensor",
    _experts,
    _fake_experts,
)


def choose(
    logits: Tensor,
    top_k: int,
    normalize: bool,
    sigmoid: bool = False,
    correction: Tensor | None = None,
    groups: int = 1,
    top_groups: int = 1,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a router's logits [N, E] every expert's share, their softmax or sigmoids in float32 [N, E]; the weights [N, K]
    of the best `top_k`, the best first, of those that are alike the first, float32; and which they are [N, K].

    normalize   weights are made to sum to one, before all are multiplied by `factor`
    correction  float32 [E], added to the shares in the choice alone
    groups      experts that stand side by side; only those of the `top_groups` are chosen from whose two best are the
                best together
    """
    return _run_choose(logits.contiguous(), top_k, normalize, sigmoid, correction, groups, top_groups, factor)


def experts(
    x: Tensor,
    weight: Tensor,
    chosen: Tensor,
    matrices: Sequence[Tensor],
    formats: Sequence[int],
    biases: Sequence[Tensor | None],
    activation: str,
    limit: float = 0.0,
    gain: float = 0.0,
) -> Tensor:
    """Σ_k weight_k · expert_k(x), [N, D], of few tokens x [N, D], their weights, float32 [N, K], and chosen experts
    [N, K]; what is no expert's number counts for none.

    matrices    of all experts, (gate,) up and down, [E, out, ...] rows as their `formats` store them
    biases      [E, out] each or None
    activation  an expert is down(act(gate(x)) · up(x)), or down(act(up(x))); "clamped", of gate g and up u: down of
                g' · σ(gain · g') · (u' + 1), g' not above `limit`, u' within it

    x and biases are of one type, float32 or bfloat16; so are matrices of floats.
    """
    x, weight, chosen = x.contiguous(), weight.contiguous(), chosen.contiguous()
    return _run_experts(x, weight, chosen, matrices, formats, biases, activation, limit, gain)
