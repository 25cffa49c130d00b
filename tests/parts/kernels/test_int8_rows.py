"""Rows in 8 bits: how near they come, the same bytes from every kernel, and attention that reads them as they lie."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.parts import kernels
from anyformer.parts.kernels import Scores, few, native, reference
from anyformer.parts.kernels.int8_rows import GROUP, Int8Rows, numbers, quantized
from anyformer.parts.kernels.native import building
from anyformer.parts.masks import Causal, Tokens, Valid, Window, lower

SETS = tuple(building.instruction_sets())
needs_library = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")
WIDTHS = st.sampled_from([1, 3, 16, 31, 40, 63, 64, 65, 96, 128, 200])


def packed(x: Tensor) -> Int8Rows:
    return Int8Rows(quantized(x), x.shape[-1])


@given(WIDTHS, st.integers(-30, 30), st.integers(0, 2**31 - 1))
def test_no_number_is_far_off(C: int, magnitude: int, seed: int) -> None:
    """Of any width, odd ones too, and any magnitude: within 1/253 of the largest of its 32 channels, whatever the other
    channels hold; zeros stay zeros."""
    x = torch.randn(2, 1, 5, C, generator=torch.Generator().manual_seed(seed)) * 2.0**magnitude
    x[0, 0, 0] = 0
    x[0, 0, 1, :: GROUP + 1] *= 1000
    back = numbers(packed(x), torch.float32)
    for first in range(0, C, GROUP):
        group, found = x[..., first : first + GROUP], back[..., first : first + GROUP]
        assert ((found - group).abs() <= group.abs().amax(-1, keepdim=True) / 253).all()
    assert torch.equal(back[0, 0, 0], torch.zeros(C))


def test_a_row_takes_half_of_bfloat16() -> None:
    """A head of 64 channels: 68 bytes instead of 128."""
    assert quantized(torch.randn(1, 3, 10, 64)).numel() == 3 * 10 * 68


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(bad: float) -> None:
    """A NaN or an infinity is not turned into a number on the way; other rows are untouched."""
    x = torch.randn(1, 1, 2, 6)
    x[0, 0, 1, 4] = bad
    back = numbers(packed(x), torch.float32)
    assert not back[0, 0, 1].isfinite().any() and back[0, 0, 0].isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_native_kernel_writes_the_same_bytes(instructions: str, dtype: torch.dtype) -> None:
    """Into slots in a row or into named ones, none for padding, from views: what torch quantises, byte for byte."""
    torch.manual_seed(0)
    for C in (1, 5, 64, 65, 130):
        x = torch.randn(2, 4, 3, C).to(dtype).transpose(1, 2)
        x[0, 0, 1] = 0
        x[0, 1, 1, 0] = 3e38
        x[1, 1, 1, 0] = 1e-38
        wanted = quantized(x)
        store = torch.zeros(2, 3, 7, wanted.shape[-1], dtype=torch.int8)
        native.keep(x, store, None, 2)
        assert torch.equal(store[:, :, 2:6], wanted)
        assert not store[:, :, :2].any() and not store[:, :, 6:].any()
        store.zero_()
        native.keep(x, store, torch.tensor([[6, 0, -1, 3], [1, 2, 3, 4]]), 0)
        assert torch.equal(store[0][:, [6, 0, 3]], wanted[0][:, [0, 1, 3]])
        assert torch.equal(store[1][:, 1:5], wanted[1])
        assert not store[0][:, [1, 2, 4, 5]].any()
        for bad in (math.nan, math.inf):
            native.keep(torch.full((1, 3, 1, C), bad, dtype=dtype), store, None, 0)
            assert not numbers(Int8Rows(store[:1, :, :1], C), torch.float32).isfinite().any()


@st.composite
def attentions(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, Tokens, Tokens, Scores]:
    """Queries at the end of longer keys, some of them padding; grouped heads, values of another width, sinks, caps."""
    torch.manual_seed(draw(st.integers(0, 2**31 - 1)))
    B, K, G, T = (draw(st.integers(1, most)) for most in (2, 3, 5, 5))
    S = T + draw(st.sampled_from([0, 1, 30, 64, 131, 700]))
    C, V = draw(WIDTHS), draw(WIDTHS)
    q, k, v = torch.randn(B, K * G, T, C), torch.randn(B, K, S, C), torch.randn(B, K, S, V)
    valid = torch.rand(B, S) > draw(st.sampled_from([-1.0, 0.3]))
    keys = Tokens(S, device="cpu", position=torch.arange(S)[None].expand(B, S), valid=valid)
    queries = Tokens(T, device="cpu", position=torch.arange(S - T, S)[None].expand(B, T))
    cap = draw(st.sampled_from([None, 5.0]))
    sinks = torch.randn(K * G) if draw(st.booleans()) else None
    return q, k, v, queries, keys, Scores(C**-0.5, soft_cap=cap, sinks=sinks)


@needs_library
@settings(max_examples=60)
@given(attentions(), st.sampled_from(SETS), st.booleans())
@torch.no_grad()
def test_attention_reads_rows_as_they_lie(
    case: tuple[Tensor, Tensor, Tensor, Tokens, Tokens, Scores], name: str, windowed: bool
) -> None:
    """Over keys and values in 8 bits, bfloat16 and float32, on every instruction set, any mask: the reference over the
    numbers that they stand for."""
    q, k, v, queries, keys, scores = case
    visible = lower((Causal() & Window(40) if windowed else Causal()) & Valid(), queries, keys)
    library = native.library()
    assert library is not None
    best = library.anyformer_instructions()
    library.anyformer_use(name.encode())
    try:
        for kept_k, kept_v in ((k, v), (k.bfloat16(), v.bfloat16()), (packed(k), packed(v))):
            found = few.attend(q, kept_k, kept_v, visible, scores)
            k_read, v_read = (numbers(x, torch.float32).float() for x in (kept_k, kept_v))
            wanted = reference.attend(q, k_read, v_read, visible, scores)
            assert torch.allclose(found, wanted, rtol=0, atol=2e-5)
    finally:
        library.anyformer_use(best)


def alone(x: Tensor | Int8Rows, row: int) -> Tensor | Int8Rows:
    """One row of a batch."""
    return Int8Rows(x.rows[row : row + 1], x.width) if isinstance(x, Int8Rows) else x[row : row + 1]


@needs_library
@torch.no_grad()
def test_a_row_does_not_feel_the_others() -> None:
    """To the bit: a row of a batch is itself alone, on two threads as on one."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 6, 2, 64), torch.randn(3, 2, 700, 64), torch.randn(3, 2, 700, 64)
    threads = torch.get_num_threads()
    try:
        for kept_k, kept_v in ((k, v), (k.bfloat16(), v.bfloat16()), (packed(k), packed(v))):
            torch.set_num_threads(2)
            whole = native.attention(q, kept_k, kept_v, None, None, 0.125, None)
            torch.set_num_threads(1)
            for row in range(3):
                one_k, one_v = alone(kept_k, row), alone(kept_v, row)
                found = native.attention(q[row : row + 1], one_k, one_v, None, None, 0.125, None)
                assert torch.equal(found[0], whole[row])
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 20])
def test_any_kernel_serves_rows_in_8_bits(queries: int) -> None:
    """Few queries or many, whichever kernel is chosen, or named: the numbers that the rows stand for."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, queries, 24), packed(torch.randn(2, 2, 50, 24)), packed(torch.randn(2, 2, 50, 24))
    q_tokens, k_tokens = Tokens(queries, device="cpu", start=50 - queries), Tokens(50, device="cpu", start=0)
    visible, scores = lower(Causal(), q_tokens, k_tokens), Scores(0.2)
    wanted = reference.attend(q, numbers(k, q.dtype), numbers(v, q.dtype), visible, scores)
    for name in ("auto", "reference", "online"):
        with kernels.use(name):
            assert torch.allclose(kernels.attend(q, k, v, visible, scores), wanted, rtol=0, atol=1e-5)
