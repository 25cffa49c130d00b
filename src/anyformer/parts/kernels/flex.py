"""torch's FlexAttention: any mask as a block-sparse kernel on CUDA; on CPU for checking, without gradients."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible, pick


def limits(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None."""
    if scores.dropout:
        return "it has no dropout"
    if not q.is_cuda and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        return "it has no backward pass on this device"
    return None


@cache
def _flex(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C]."""
    from torch.nn.attention.flex_attention import AuxRequest, create_block_mask

    B, H, T, _ = q.shape
    S = k.shape[2]
    # Made here: what is traced below may not make them.
    at_query, at_key = visible.q.position, visible.k.position
    block_mask = None
    if visible.form != "everything":

        def mask_mod(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return visible.mask.rule(visible.q.at(b, i), visible.k.at(b, j))

        rows = max(visible.q.position.shape[0], visible.k.position.shape[0], *_rows(visible))
        block_mask = create_block_mask(mask_mod, B if rows > 1 else None, None, T, S, device=str(q.device))

    cap, bias = scores.soft_cap, scores.bias

    def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if cap is not None:
            score = cap * torch.tanh(score / cap)
        if bias is not None:
            score = score + bias.rule(h, pick(at_query, b, i), pick(at_key, b, j))
        return score

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*flex_attention called without torch.compile.*")
        out, aux = _flex(q.device.type)(
            q.contiguous(),
            k.contiguous(),
            v.contiguous(),
            score_mod=None if cap is None and bias is None else score_mod,
            block_mask=block_mask,
            scale=scores.scale,
            enable_gqa=k.shape[1] != H,
            return_aux=AuxRequest(lse=True),
        )
    if scores.sinks is not None:
        # A key without a value only takes its share: e^lse / (e^lse + e^sink) remains.
        out = out * torch.sigmoid(aux.lse - scores.sinks[None, :, None]).unsqueeze(-1).to(out.dtype)
    return out.to(q.dtype)


def _rows(visible: Visible) -> list[int]:
    attributes = (visible.q.document, visible.q.valid, visible.k.valid, visible.k.prefix)
    return [tensor.shape[0] for tensor in attributes if tensor is not None]
