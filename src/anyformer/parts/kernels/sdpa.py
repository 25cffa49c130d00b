"""torch's own scaled_dot_product_attention, fed only what it does exactly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible


def limits(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None."""
    if scores.soft_cap is not None:
        return "it has no soft cap"
    if scores.sinks is not None:
        return "it has no sinks"
    return None


def width_of_bias(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of what is added to the scores of queries of `dtype`."""
    # On CPU it may stay float32 in a bfloat16 model, where -300.7 would round to -300.
    return dtype if device.type == "cuda" or dtype == torch.float64 else torch.float32


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C]; values may be of another width."""
    B, H, T, C = q.shape
    K = k.shape[1]
    bias = scores.bias
    # is_causal is aligned top left: right only where queries and keys are the same tokens, as 'causal' promises.
    causal = visible.form == "causal" and bias is None
    narrower = C - v.shape[3]
    if narrower > 0 and T > 1 and not q.is_cuda and not torch.is_grad_enabled():
        # torch's tiled kernel takes values as wide as keys; any other holds all scores at once. With gradients, what
        # its backward pass spends on the zeros is more than it saves.
        return attend(q, k, F.pad(v, (0, narrower)), visible, scores)[..., :-narrower]
    added: Tensor | None = None
    if bias is not None:
        added = visible.added(bias, width_of_bias(q.dtype, q.device))
    elif not causal and visible.form != "everything":
        # Torch makes numbers of truths in every layer again; of a step of decoding that would be most of the mask's
        # cost, while of many queries they would be kept for all layers.
        added = visible.added(None, width_of_bias(q.dtype, q.device)) if T == 1 else visible.dense
    if T == 1 and H != K:
        # One query: the heads of a group become the queries of their key head, which reads its keys once. With a mask
        # torch has no other way on CUDA: its tiled kernels take either a mask or heads in groups, and where it is asked
        # for both it multiplies matrices after copying each key once for every head that reads it.
        if added is not None:
            added = added.view(added.shape[0], K, H // K, -1) if added.shape[1] > 1 else added
        grouped = F.scaled_dot_product_attention(
            q.reshape(B, K, H // K, C), k, v, added, scores.dropout, scale=scores.scale
        )
        return grouped.reshape(B, H, 1, -1)
    return F.scaled_dot_product_attention(q, k, v, added, scores.dropout, causal, scale=scores.scale, enable_gqa=H != K)
