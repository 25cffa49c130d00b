"""What a kernel does to scores besides hiding some of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from anyformer.parts.masks import Bias


@dataclass(frozen=True, eq=False)
class Scores:
    """softmax over keys of  cap(scale · q·k) + bias,  with a learned logit more per head where there are sinks.

    scale     multiplies q·k
    soft_cap  cap(s) = soft_cap · tanh(s / soft_cap); None: the identity
    bias      ALiBi or relative buckets
    sinks     [H]: logits of a key that has no value
    dropout   probability of dropping a weight
    """

    scale: float
    soft_cap: float | None = None
    bias: Bias | None = None
    sinks: Tensor | None = None
    dropout: float = 0.0
