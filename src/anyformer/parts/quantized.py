"""Linears and embeddings whose matrix stays in blocks: what a model of few bits computes with.

Few rows on a CPU go to the native kernel, which rounds x to 8 bits as well, with a scale for each 32 numbers. For any
others a tile of W's rows at a time is dequantised, so few that they stay in the cache, and multiplied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.parts.blocks import Blocks, dequantize
from anyformer.parts.kernels import native, wide
from anyformer.parts.kernels.wide import product_dtype
from anyformer.parts.linear import Matrix, adjacent

#: How many numbers of a matrix are dequantised at a time.
TILE = 1 << 20


class QuantizedLinear(nn.Module):
    """y = x Wᵀ + b, W [out, in] in blocks. Gradients flow to x, and to nothing else."""

    blocks: Tensor
    bias: nn.Parameter | None

    def __init__(self, matrix: Blocks, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = matrix.shape
        self.format = matrix.format
        self.register_buffer("blocks", matrix.data)
        self.register_parameter("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        if native.few(x) and (matrix := self.matrix(x.dtype)) is not None:
            return native.linear(x, matrix.data, matrix.format, matrix.bias)
        x = x.to(product_dtype(x))
        return _Product.apply(self, x) if x.requires_grad and torch.is_grad_enabled() else self.product(x)

    def matrix(self, dtype: torch.dtype) -> Matrix | None:
        """What the native kernel multiplies inputs of `dtype` with; None where it cannot."""
        bias, blocks = self._parameters["bias"], self._buffers["blocks"]
        assert blocks is not None
        fits = (bias is None or bias.dtype == dtype) and blocks.is_contiguous()
        return Matrix(blocks, self.format.code, bias) if fits else None

    def product(self, x: Tensor) -> Tensor:
        """The product without a graph; in float32 where bfloat16 is multiplied more slowly than that."""
        y = x.new_empty(*x.shape[:-1], self.out_features)
        if native.fits(x) and wide.pays(x):
            x = x.float()
        for rows, tile in self.tiles(x.dtype):
            bias = None if self.bias is None else self.bias[rows].to(x.dtype)
            y[..., rows] = F.linear(x, tile, bias)
        return y

    def tiles(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The matrix a few rows at a time, dequantised; each tile may lie where the one before it lay."""
        step = max(1, TILE // self.in_features)
        numbers = self.blocks.new_empty(step, self.in_features, dtype=dtype) if self.expands(dtype) else None
        for start in range(0, self.out_features, step):
            rows = slice(start, start + step)
            blocks = self.blocks[rows]
            if numbers is None:
                yield rows, dequantize(blocks, self.format, dtype)
            else:
                native.expand(blocks, self.format.code, numbers[: len(blocks)])
                yield rows, numbers[: len(blocks)]

    def expands(self, dtype: torch.dtype) -> bool:
        """Whether the native kernel can dequantise this matrix to `dtype`."""
        blocks = self.blocks
        ready = dtype == torch.float32 and blocks.device.type == "cpu" and blocks.is_contiguous()
        return ready and not torch.compiler.is_compiling() and native.library() is not None

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, format={self.format.name}"


class _Product(torch.autograd.Function):
    """The product with a gradient for x; the backward pass dequantises again, so that no tile is kept."""

    @staticmethod
    def forward(ctx: Any, linear: QuantizedLinear, x: Tensor) -> Tensor:
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    def backward(ctx: Any, *come_back: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        (grad,) = come_back
        parts = (grad[..., rows] @ tile for rows, tile in ctx.linear.tiles(grad.dtype))
        total = next(parts)
        for part in parts:
            total = total + part
        return None, total


class QuantizedMatrices(nn.Module):
    """Matrices [E, out, in] in blocks, those of experts, to be multiplied with one at a time."""

    blocks: Tensor

    def __init__(self, matrices: Blocks) -> None:
        super().__init__()
        self.shape, self.format = matrices.shape, matrices.format
        self.register_buffer("blocks", matrices.data)

    def product(self, index: int, x: Tensor, bias: Tensor | None) -> Tensor:
        """x Wᵀ + b with one of them. Gradients flow to x, and to nothing else."""
        blocks = self.blocks[index]
        if native.few(x) and blocks.is_contiguous():
            return native.linear(x, blocks, self.format.code, bias)
        product = QuantizedLinear(Blocks(blocks, self.format))(x)
        return product if bias is None else product + bias

    def matrix(self, bias: Tensor | None) -> Matrix | None:
        """All of them, with their biases [E, out], as the native kernel takes them; None where it cannot."""
        return Matrix(self.blocks, self.format.code, bias) if self.blocks.is_contiguous() else None

    def extra_repr(self) -> str:
        return f"{', '.join(map(str, self.shape))}, format={self.format.name}"


def numbers(matrices: Tensor | QuantizedMatrices, dtype: torch.dtype) -> Tensor:
    """All of them [E, out, in] as numbers of `dtype`."""
    if isinstance(matrices, QuantizedMatrices):
        return dequantize(matrices.blocks, matrices.format, dtype)
    return matrices.to(dtype)


class QuantizedEmbedding(nn.Module):
    """Rows of a table [V, D] in blocks by their index, dequantised as they are looked up."""

    blocks: Tensor
    like: Tensor

    def __init__(self, table: Blocks, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.shape
        self.format = table.format
        self.register_buffer("blocks", table.data)
        # Of the type and on the device that rows are wanted in; casts of the model turn it as they turn parameters.
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return dequantize(F.embedding(ids, self.blocks), self.format, self.like.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, format={self.format.name}"


def numbers_of(table: nn.Module) -> Tensor:
    """A tensor of the type and on the device in which an embedding, quantised or not, gives its rows."""
    return table.like if isinstance(table, QuantizedEmbedding) else table.weight  # type: ignore[return-value]


def share(module: nn.Module, table: nn.Module) -> None:
    """Make an embedding's matrix, in blocks or not, the one of another module too."""
    name = "blocks" if isinstance(table, QuantizedEmbedding) else "weight"
    setattr(module, name, getattr(table, name))


def lay_side_by_side(linears: Sequence[nn.Module]) -> None:
    """Move the blocks of linears with one input into one buffer, so that one product can serve them all; those that lie
    so already (in a file that is mapped into memory), and those of different formats, stay where they are."""
    ready = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    alike = len(ready) == len(linears) and len({linear.format for linear in ready}) == 1
    if not alike or adjacent([linear.blocks for linear in ready]) is not None:
        return
    buffer = torch.cat([linear.blocks for linear in ready])
    for linear, view in zip(ready, buffer.split([linear.out_features for linear in ready])):
        linear.blocks = view
