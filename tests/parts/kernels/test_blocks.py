"""The native products with matrices in blocks, on every instruction set that this machine has, against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from anyformer.parts.blocks import FORMATS, Blocks
from anyformer.parts.kernels import native

library = native.library()
if library is None:
    pytest.skip("the native kernels are not compiled here", allow_module_level=True)


def matrix(name: str, rows: int, width: int, seed: int) -> Blocks:
    """Random whole numbers with scales of an ordinary size, of either sign."""
    format, draw = FORMATS[name], torch.Generator().manual_seed(seed)
    shape = (rows, width // format.elements, format.size)
    data = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    for place in {"Q6_K": (208,), "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2)}[name]:
        scale = torch.randn(*shape[:2], 1, generator=draw).half() / 50
        data[:, :, place : place + 2] = scale.view(torch.uint8)
    return Blocks(data.flatten(1), format)


def rounded(x: Tensor) -> Tensor:
    """x as the kernel takes it: whole numbers up to 127, scaled for each 32."""
    parts = x.view(len(x), -1, 32)
    most = parts.abs().amax(-1, keepdim=True)
    whole = (parts * torch.where(most > 0, 127 / most, 0)).round()
    return (whole.double() * (most / 127).double()).view_as(x)


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_products_are_exact_but_for_the_rounding_of_inputs(name: str, instructions: str) -> None:
    """Any number of rows of either side, rows of one block or of many, spans that end in the middle: the product with
    rounded inputs to float32's own precision, and with those given within a hundredth."""
    format, draw = FORMATS[name], torch.Generator().manual_seed(7)
    for blocks in (1, 2, 3, 5, 18):
        for rows, out in ((1, 1), (1, 9), (2, 4), (3, 5), (4, 8), (5, 3), (16, 70)):
            width = format.elements * (1 if format.elements == 256 and blocks == 18 else blocks)
            matrix_, x = matrix(name, out, width, blocks), torch.randn(rows, width, generator=draw)
            weights = matrix_.dequantize().double()
            found = native.linear(x, matrix_.data, format.code).double()
            size = x.double().norm(dim=1, keepdim=True) * weights.norm(dim=1)
            # A number halfway between two whole ones may be rounded to either.
            assert bool(((found - rounded(x) @ weights.T).abs() <= 1e-3 * size).all())
            assert bool(((found - x.double() @ weights.T).abs() <= 1e-2 * size).all())


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_a_row_does_not_depend_on_what_is_beside_it(name: str, instructions: str) -> None:
    """To the bit: rows alone and together, rows of the matrix alone and together, and any number of threads."""
    blocks = matrix(name, 37, 512, 3)
    x = torch.randn(7, 512)
    whole = native.linear(x, blocks.data, blocks.format.code)
    for row in range(7):
        assert torch.equal(native.linear(x[row : row + 1], blocks.data, blocks.format.code)[0], whole[row])
    one = native.linear(x, blocks.data[5:6].contiguous(), blocks.format.code)
    assert torch.equal(one[:, 0], whole[:, 5])


@torch.no_grad()
def test_what_is_no_number_stays_none(instructions: str) -> None:
    """An infinite input, or one that is no number, gives none in its own row, and there only; noughts give nought."""
    blocks = matrix("Q4_0", 6, 64, 0)
    x = torch.randn(3, 64)
    x[0, 40], x[1, 3] = torch.nan, torch.inf
    found = native.linear(x, blocks.data, blocks.format.code)
    assert bool(found[:2].isnan().all()) and bool(found[2].isfinite().all())
    assert not bool(native.linear(torch.zeros(1, 64), blocks.data, blocks.format.code).any())


@torch.no_grad()
def test_bfloat16_and_all_around_a_product(instructions: str) -> None:
    """bfloat16 in and out, with bias, residual, activation and gate, is the same in steps."""
    blocks = matrix("Q8_0", 12, 96, 1)
    x, bias, residual = (torch.randn(*shape).bfloat16() for shape in ((2, 96), (12,), (2, 6)))
    found = native.linear(
        x, blocks.data, blocks.format.code, bias=bias, residual=residual, activation="silu", gated=True
    )
    plain = rounded(x.float()) @ blocks.dequantize().double().T + bias.double()
    expected = torch.nn.functional.silu(plain[:, :6]) * plain[:, 6:] + residual.double()
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).norm() / expected.norm()) < 2e-2


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_expanded_rows_are_the_numbers_that_they_stand_for(name: str, instructions: str) -> None:
    """Rows of one block or of many, spans that end in the middle: what torch dequantises, but for a sum's last
    rounding; nothing beside them is written."""
    format = FORMATS[name]
    for blocks in (1, 2, 3, 5, 18):
        for rows in (1, 7):
            matrix_ = matrix(name, rows, blocks * format.elements, blocks)
            wanted = matrix_.dequantize()
            found = torch.full((rows + 1, wanted.shape[1]), -77.0)
            native.expand(matrix_.data, format.code, found[:rows])
            torch.testing.assert_close(found[:rows], wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
            assert bool((found[rows] == -77.0).all())


@pytest.mark.parametrize("name", FORMATS)
@torch.no_grad()
def test_experts_in_blocks_are_products_with_one_matrix_each(name: str, instructions: str) -> None:
    """The products of `linear` with each chosen expert's own matrices, gate and up of two formats among them."""
    format, other, width = FORMATS[name], FORMATS["Q8_0"], 512
    draw = torch.Generator().manual_seed(3)
    formats = (format, other, format)
    each = [[matrix(one.name, width, width, 10 * e + i) for i, one in enumerate(formats)] for e in range(4)]
    stacked = [torch.stack([matrices[i].data for matrices in each]) for i in range(3)]
    x, weight = torch.randn(3, width, generator=draw), torch.rand(3, 2, generator=draw)
    chosen = torch.tensor([[3, 0], [0, 1], [0, 3]])
    codes = [one.code for one in formats]
    found = native.experts(x, weight, chosen, stacked, codes, [None] * 3, "relu")
    wanted = torch.zeros_like(found)
    for row in range(3):
        for rank, e in enumerate(chosen[row].tolist()):
            gate, up, down = (partial(native.linear, matrix=one.data, format=one.format.code) for one in each[e])
            wanted[row] += weight[row, rank] * down(gate(x[row : row + 1]).relu() * up(x[row : row + 1]))[0]
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
