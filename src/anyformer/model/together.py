"""How many rows may take a step side by side and each get the bits that it gets alone.

The native kernels add up every sum in one order, however many rows a product has; attention cuts keys into chunks by
their number alone, and up to `CUT_ALIKE` of them each chunk is of one size: more keys, which a row does not see, change
nothing. torch promises neither (its SiLU, for one, differs in the last bit with where a number stands among others),
so a layer with anything of its own is taken at its word only for a row alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from anyformer.model.block import Block
from anyformer.model.recording import hooks_of
from anyformer.parts.attention import Attention
from anyformer.parts.feedforward import FeedForward
from anyformer.parts.kernels import native
from anyformer.parts.linear import Linear, matrix_of
from anyformer.parts.norms import Norm
from anyformer.parts.positions import RelativePositions
from anyformer.parts.quantized import QuantizedLinear

if TYPE_CHECKING:
    from anyformer.model import Transformer

#: Up to so many keys are cut alike (`parts/kernels/native/attention.cpp`: chunks of 64, 8 of them at most).
CUT_ALIKE = 512
#: What layers are made of whose steps are native throughout.
_PARTS = (nn.ModuleList, Block, Attention, FeedForward, Norm, Linear, QuantizedLinear, RelativePositions)


@torch.no_grad()
def rows_together(model: Transformer, length: int) -> int:
    """Of rows of at most `length` tokens each, their source's too; 1 where nothing is known of that."""
    decoder, head = model.decoder, model.head
    if decoder is None or head is None or length > CUT_ALIKE or model.training or decoder.stretches():
        return 1
    if not native.fits(torch.empty(1, dtype=model.dtype, device=model.device)) or any(hooks_of(decoder)):
        return 1
    known = all(type(module) in _PARTS for module in decoder.layers.modules())
    linears = [head.output, *(each for each in decoder.layers.modules() if isinstance(each, Linear | QuantizedLinear))]
    return native.FEW if known and all(matrix_of(each, model.dtype) is not None for each in linears) else 1
