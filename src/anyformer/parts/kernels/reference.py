"""The reference: scaled dot-product attention as the paper writes it (Vaswani et al. 2017, eq. 1), in float32.

Every other kernel is tested against this one, and it alone returns the weights.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from anyformer.parts.kernels.scores import Scores
from anyformer.parts.masks import Visible


def limits(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> str | None:
    """What this kernel cannot do here, or None: it can do everything, at O(T·S) memory."""
    return None


def weights(q: Tensor, k: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """Attention weights [B, H, T, S], at least float32. A row with nothing visible is all zeros."""
    wide = torch.promote_types(q.dtype, torch.float32)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    # Autocast may take the product itself in bfloat16; what follows it is in float32 all the same.
    logits = (q.to(wide) @ k.to(wide).transpose(-1, -2)).to(wide) * scores.scale
    if scores.soft_cap is not None:
        logits = scores.soft_cap * torch.tanh(logits / scores.soft_cap)
    if scores.bias is not None:
        logits = logits + scores.bias.dense(visible.q, visible.k)
    if visible.form != "everything":
        # The lowest finite number, then a product with the mask: -inf would make NaN of a row with nothing visible.
        logits = logits.masked_fill(~visible.dense, torch.finfo(wide).min)
    if scores.sinks is not None:
        sink = scores.sinks.to(wide)[None, :, None, None].expand(*logits.shape[:3], 1)
        shares = torch.cat((logits, sink), -1).softmax(-1)[..., :-1]
    else:
        shares = logits.softmax(-1)
    return shares if visible.form == "everything" else shares * visible.dense


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Visible, scores: Scores) -> Tensor:
    """[B, H, T, C] from queries [B, H, T, C], keys and values [B, K, S, C]."""
    shares = F.dropout(weights(q, k, visible, scores), scores.dropout, training=scores.dropout > 0)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    return (shares @ v.to(shares.dtype)).to(q.dtype)
