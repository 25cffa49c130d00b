"""Numbers become blocks: as the reference rounds them, or by a search that loses less."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize as theirs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anyformer.checkpoints.quantizing import LARGEST, fitting, pack_scales, quantize
from anyformer.errors import CheckpointError
from anyformer.parts.blocks import FORMATS, Format, unpack_scales

#: The most that rounding may move a number, in the span (largest less smallest, nought included) of what shares its
#: scale: half a step of so many, and what rounding scales to 16 bits, or to 6, adds.
STEPS = {"Q8_0": 254, "Q4_0": 15, "Q4_1": 15, "Q4_K": 15, "Q6_K": 63}


def matrix(seed: int, rows: int, width: int) -> Tensor:
    """Numbers as weights have them: bell-shaped, of different spread in each row, a few far out."""
    draw = torch.Generator().manual_seed(seed)
    numbers = torch.randn(rows, width, generator=draw) * torch.logspace(-3, 1, rows)[:, None]
    return numbers * torch.where(torch.rand(rows, width, generator=draw) < 0.01, 5.0, 1.0)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().sum().sqrt() / wanted.square().sum().sqrt())


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
def test_plain_rounding_is_the_reference_s_to_the_bit(name: str) -> None:
    """Without a search, blocks equal those of the reference package, those of noughts and of one number too."""
    numbers = torch.cat((matrix(1, 40, 256), torch.zeros(1, 256), torch.full((1, 256), -0.3)))
    expected = theirs(numbers.numpy(), GGMLQuantizationType[name])
    assert np.array_equal(quantize(numbers, FORMATS[name], search=False).data.numpy(), expected)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1"])
def test_the_search_loses_less(name: str) -> None:
    """The scales that are searched for leave a smaller error than the reference's."""
    numbers, format = matrix(2, 64, 512), FORMATS[name]
    plain, searched = (error(quantize(numbers, format, search=way).dequantize(), numbers) for way in (False, True))
    assert searched < 0.98 * plain


def test_more_bits_lose_less() -> None:
    """The formats keep their order: of one size, blocks of blocks lose less than plain ones."""
    numbers = matrix(3, 64, 512)
    lost = {name: error(quantize(numbers, format).dequantize(), numbers) for name, format in FORMATS.items()}
    assert lost["Q8_0"] < lost["Q6_K"] < lost["Q4_K"] < lost["Q4_0"]
    assert lost["Q8_0"] < 0.008 and lost["Q6_K"] < 0.025 and lost["Q4_K"] < 0.09 and lost["Q4_0"] < 0.11


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), spread=st.floats(-4, 4), shift=st.floats(-3, 3), name=st.sampled_from([*FORMATS]))
def test_no_number_moves_further_than_a_step(seed: int, spread: float, shift: float, name: str) -> None:
    """Whatever the numbers' size and place, each is found again within two steps of its block (the search may trade an
    outlier's place for that of all others), and nought in a block of noughts is nought."""
    format = FORMATS[name]
    numbers = 10**spread * (torch.randn(3, 512, generator=torch.Generator().manual_seed(seed)) + shift)
    numbers[1] = 0
    found = quantize(numbers, format).dequantize()
    parts = numbers.view(3, -1, format.elements)
    span = parts.amax(-1).clamp(min=0) - parts.amin(-1).clamp(max=0)
    # A scale may serve one sign only, as that of Q4_0 does, of which the other has a step less.
    most = 2 * span.clamp(min=parts.abs().amax(-1)) / STEPS[name] * (2 if name in ("Q4_0", "Q6_K", "Q8_0") else 1)
    moved = (found - numbers).view_as(parts).abs().amax(-1)
    assert bool((moved <= most + 1e-7).all())
    assert not bool(found[1].any())


def test_shapes_and_dtypes() -> None:
    """Several matrices at once, in bfloat16, are quantised row by row."""
    numbers = torch.stack((matrix(4, 5, 64), matrix(5, 5, 64))).bfloat16()
    blocks = quantize(numbers, FORMATS["Q4_0"])
    assert blocks.shape == (2, 5, 64) and blocks.data.shape == (2, 5, 36)
    assert torch.equal(blocks.data[1], quantize(numbers[1], FORMATS["Q4_0"]).data)


def test_scales_are_packed_as_they_are_unpacked() -> None:
    """Every pair of 6 bits comes back from its twelve bytes."""
    draw = torch.Generator().manual_seed(0)
    scales, offsets = (torch.randint(0, 64, (500, 8), generator=draw, dtype=torch.uint8) for _ in range(2))
    packed = pack_scales(scales, offsets)
    assert packed.shape == (500, 12)
    assert all(torch.equal(one, other) for one, other in zip(unpack_scales(packed), (scales, offsets)))


def test_which_format_fits() -> None:
    """Rows that are no whole blocks take the next smaller blocks, or none; tables of tokens are never in four bits."""

    def name(format: Format | None) -> str | None:
        return None if format is None else format.name

    wanted = {name: [fitting(format, width) for width in (512, 576, 40)] for name, format in FORMATS.items()}
    assert {key: [*map(name, found)] for key, found in wanted.items()} == {
        "Q4_0": ["Q4_0", "Q4_0", None],
        "Q4_1": ["Q4_1", "Q4_1", None],
        "Q8_0": ["Q8_0", "Q8_0", None],
        "Q4_K": ["Q4_K", "Q4_0", None],
        "Q6_K": ["Q6_K", "Q8_0", None],
    }
    assert [name(fitting(FORMATS["Q4_0"], width, table=True)) for width in (512, 576, 40)] == ["Q6_K", "Q8_0", None]
    assert name(fitting(FORMATS["Q8_0"], 512, table=True)) == "Q8_0"


@pytest.mark.parametrize("name", FORMATS)
def test_what_cannot_be_quantised(name: str) -> None:
    """Rows of part of a block, and numbers that are none, or that a scale has no room for, are refused in a sentence;
    the largest that it has room for stays a number."""
    with pytest.raises(CheckpointError, match="rows of 40 are no whole blocks"):
        quantize(torch.zeros(2, 40), FORMATS[name])
    for bad in (torch.nan, torch.inf, 1e5):
        with pytest.raises(CheckpointError, match=r"not finite, or beyond 65,504"):
            quantize(torch.full((1, 256), bad), FORMATS[name])
    largest = quantize(torch.full((1, 256), LARGEST), FORMATS[name]).dequantize()
    torch.testing.assert_close(largest, torch.full((1, 256), LARGEST), rtol=0.02, atol=0.0)
