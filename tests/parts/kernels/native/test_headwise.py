"""Heads that each have a matrix of their own, by the native kernel: beside float64, every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import spec
from anyformer.parts.kernels import native
from anyformer.parts.masks import Tokens
from anyformer.parts.positions import rotary_angles


@pytest.fixture(autouse=True)
def _without_gradients(instructions: str) -> Iterator[None]:
    with torch.no_grad():
        yield


@settings(max_examples=40)
@given(
    rows=st.integers(1, 9),
    heads=st.integers(1, 7),
    inputs=st.integers(1, 90),
    outputs=st.integers(1, 90),
    transposed=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    made=st.sampled_from([None, torch.float32, torch.bfloat16]),
    seed=st.integers(0, 9),
)
def test_heads_are_multiplied_apart(
    rows: int,
    heads: int,
    inputs: int,
    outputs: int,
    transposed: bool,
    dtype: torch.dtype,
    made: torch.dtype | None,
    seed: int,
) -> None:
    """Of a view of wider heads, results of either type; and to the bit, no row depends on the others."""
    torch.manual_seed(seed)
    x = torch.randn(1, rows, heads, inputs + 3).to(dtype)[..., 2:-1]
    weight = torch.randn(heads, *((inputs, outputs) if transposed else (outputs, inputs))).to(dtype)
    found = native.heads(x, weight, transposed, made)
    wanted = torch.einsum("bthi,hio->btho" if transposed else "bthi,hoi->btho", x.double(), weight.double())
    assert found.dtype == (made or dtype) and found.shape == wanted.shape
    bound = 2e-5 if found.dtype == torch.float32 else 1e-2
    assert (found.double() - wanted).abs().max() <= bound * wanted.abs().max().clamp(min=1e-3)
    for row in range(rows):
        assert torch.equal(native.heads(x[:, row : row + 1], weight, transposed, made)[:, 0], found[:, row])


@given(
    shape=st.tuples(*[st.integers(1, 4)] * 3),
    widths=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=15)
def test_channels_are_joined(shape: tuple[int, int, int], widths: list[int], dtype: torch.dtype) -> None:
    """As by torch, whatever they are views of; and the last of them turned where they then lie."""
    parts = [torch.randn(*shape, width + 1).to(dtype)[..., 1:] for width in (*widths, 6)]
    whole = native.joined(*parts)
    assert torch.equal(whole, torch.cat(parts, -1))
    angles = rotary_angles(spec.Rotary(interleaved=True), 6)
    tables = angles.tables(Tokens(shape[1], start=3))
    native.rotary(whole[..., sum(widths) :], *tables, angles.interleaved)
    torch.testing.assert_close(whole, torch.cat((*parts[:-1], angles.rotate(parts[-1], tables)), -1))


def test_torch_sees_the_operator() -> None:
    """It has a schema, and a fake implementation of the same shapes and type."""
    arguments = torch.randn(2, 3, 8), torch.randn(3, 5, 8), False, torch.bfloat16
    torch.library.opcheck(torch.ops.anyformer.heads.default, arguments)
