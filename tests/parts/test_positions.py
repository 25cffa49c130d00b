"""Positions against their papers' formulas and against the reference implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from anyformer import spec
from anyformer.errors import InputError
from anyformer.parts.masks import Tokens
from anyformer.parts.positions import (
    LearnedPositions,
    RelativePositions,
    SinusoidalPositions,
    alibi_bias,
    alibi_slopes,
    relative_bucket,
    rotary_angles,
    sinusoids,
)
from anyformer.spec.positions import RotaryScaling

FAR = 1_000_000


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [2, 6, 64])
def test_sinusoids_are_the_papers_formula(dim: int, interleaved: bool) -> None:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(...), in plain Python, up to a million."""
    positions = [0, 1, 2, 77, 4095, FAR]
    found = sinusoids(torch.tensor(positions), dim, 10000.0, interleaved)
    assert found.dtype == torch.float32
    for row, position in zip(found.tolist(), positions, strict=True):
        waves = [(math.sin(a), math.cos(a)) for a in (position / 10000 ** (2 * i / dim) for i in range(dim // 2))]
        if interleaved:
            wanted = [value for pair in waves for value in pair]
        else:
            wanted = [sine for sine, _ in waves] + [cosine for _, cosine in waves]
        assert row == pytest.approx(wanted, abs=1e-7)


def test_sinusoids_are_added_where_tokens_stand() -> None:
    """Rows of different positions get different waves."""
    waves = SinusoidalPositions(spec.Sinusoidal(base=100.0), 4)
    packed = waves(Tokens.packed(((2, 3), (5,))))
    assert torch.equal(packed[0], waves(Tokens(5, start=0))[0, [0, 1, 0, 1, 2]])
    assert torch.equal(packed[1], waves(Tokens(5, start=0))[0])


def turn(x: Tensor, position: Tensor, rotary: spec.Rotary) -> Tensor:
    """Rotate x [B, T, H, C] as a model does."""
    angles = rotary_angles(rotary, x.shape[-1])
    return angles.rotate(x, angles.tables(Tokens(x.shape[1], position=position)))


def by_complex_numbers(x: Tensor, position: Tensor, rotary: spec.Rotary) -> Tensor:
    """The paper's own reading: pairs of channels are complex numbers, turned by e^(i·m·θ)."""
    dim = rotary.dim or x.shape[-1]
    theta = torch.tensor([rotary.base ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
    turned, rest = x[..., :dim].double(), x[..., dim:].double()
    turns = torch.polar(torch.ones(()).double(), position.double()[..., None] * theta)[:, :, None]
    if rotary.interleaved:
        out = torch.view_as_real(torch.view_as_complex(turned.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)
    else:
        real, imaginary = turned.chunk(2, -1)
        product = torch.complex(real.contiguous(), imaginary.contiguous()) * turns
        out = torch.cat((product.real, product.imag), -1)
    return torch.cat((out, rest), -1)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dim", [None, 2, 6])
@pytest.mark.parametrize("base", [10000.0, 500000.0, 3.0])
def test_rotary_is_multiplication_by_complex_numbers(interleaved: bool, dim: int | None, base: float) -> None:
    """Full and partial, both pairings, at positions near and a million away; channels beyond `dim` stay."""
    torch.manual_seed(0)
    rotary = spec.Rotary(base=base, dim=dim, interleaved=interleaved)
    x = torch.randn(2, 4, 3, 8)
    position = torch.tensor([[0, 1, 5, 300], [4096, 131071, FAR - 1, FAR]])
    assert torch.allclose(turn(x, position, rotary).double(), by_complex_numbers(x, position, rotary), atol=1e-6)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotated_products_know_only_the_distance(interleaved: bool) -> None:
    """q at m meets k at n as q at m + shift meets k at n + shift, however far the shift."""
    torch.manual_seed(0)
    rotary = spec.Rotary(interleaved=interleaved, dim=6)
    q, k = torch.randn(1, 1, 1, 8).double(), torch.randn(1, 1, 1, 8).double()

    def meet(m: int, n: int) -> float:
        return float((turn(q, torch.tensor([[m]]), rotary) * turn(k, torch.tensor([[n]]), rotary)).sum())

    for m, n in ((0, 0), (3, 0), (7, 5), (2, 9)):
        for shift in (1, 1000, FAR):
            assert meet(m + shift, n + shift) == pytest.approx(meet(m, n), abs=1e-5)
    assert meet(3, 0) != pytest.approx(meet(4, 0), abs=1e-3)


def test_a_bfloat16_model_is_right_at_a_million() -> None:
    """Angles do not pass through the model's dtype: at position 1,000,000 rotations, waves and ALiBi are those of
    float64 to bfloat16's own rounding; angles in float32 would be off by far more."""
    torch.manual_seed(0)
    rotary = spec.Rotary(base=500000.0)
    x = torch.randn(1, 3, 2, 64).bfloat16()
    position = torch.tensor([[FAR - 1, FAR, FAR + 1]])
    found, wanted = turn(x, position, rotary), by_complex_numbers(x, position, rotary)
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).abs().max() <= 2**-8 * wanted.abs().max()
    naive = (position.float()[..., None] * 500000.0 ** (-torch.arange(0, 64, 2) / 64)).cos().double()
    exact = (position.double()[..., None] * 500000.0 ** (-torch.arange(0, 64, 2).double() / 64)).cos()
    assert (naive - exact).abs().max() > 2**-8, "the test would not tell"
    near, far = Tokens(2, start=0), Tokens(2, start=FAR)
    assert torch.equal(alibi_bias(3, 8.0).dense(far, far), alibi_bias(3, 8.0).dense(near, near))


def test_rotary_layers_of_one_kind_share_their_angles() -> None:
    """One object, so that a forward pass makes its tables once."""
    assert rotary_angles(spec.Rotary(), 8) is rotary_angles(spec.Rotary(dim=None), 8)
    assert rotary_angles(spec.Rotary(), 8) is not rotary_angles(spec.Rotary(base=5.0), 8)


@pytest.mark.parametrize(
    "scaling",
    [
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        {"factor": 2.5, "low_freq_factor": 0.5, "high_freq_factor": 9.0, "original_max_position_embeddings": 64},
    ],
)
@pytest.mark.parametrize("head_dim", [8, 64, 128])
def test_llama3_scaling_is_the_reference(scaling: dict, head_dim: int) -> None:
    """The frequencies of transformers' own initialiser."""
    theta = 500000.0
    config = LlamaConfig(
        hidden_size=head_dim * 2,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": "llama3", "rope_theta": theta, **scaling},
    )
    wanted, factor = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    ours = spec.Llama3Scaling(
        factor=scaling["factor"],
        low=scaling["low_freq_factor"],
        high=scaling["high_freq_factor"],
        original_context=scaling["original_max_position_embeddings"],
    )
    found = rotary_angles(spec.Rotary(base=theta, scaling=ours), head_dim).frequencies
    assert factor == 1.0
    assert torch.allclose(torch.tensor(found), wanted, rtol=2e-6, atol=0)


SHORT, LONG = [1.0, 1.05, 1.2, 1.5, 1.5, 2.0, 2.5, 3.0], [1.0, 2.0, 4.0, 7.5, 20.0, 33.0, 50.0, 64.0]
#: Scalings as transformers' configs say them, and as specs; the context is 512 and heads are 16 wide.
SCALED = [
    ({"rope_type": "linear", "factor": 4.0}, spec.LinearScaling(factor=4.0)),
    ({"rope_type": "dynamic", "factor": 2.5}, spec.DynamicScaling(factor=2.5, original_context=512)),
    (
        {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
        spec.YarnScaling(factor=8.0, original_context=64),
    ),
    (
        {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 20.0,
            "beta_slow": 2.0,
            "truncate": False,
            "attention_factor": 1.3,
        },
        spec.YarnScaling(
            factor=32.0, original_context=4096, beta_fast=20.0, beta_slow=2.0, truncate=False, attention_factor=1.3
        ),
    ),
    (
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64},
        spec.LongRopeScaling(short=tuple(SHORT), long=tuple(LONG), factor=8.0, original_context=64),
    ),
    (
        {
            "rope_type": "longrope",
            "short_factor": SHORT,
            "long_factor": LONG,
            "original_max_position_embeddings": 128,
            "factor": 16.0,
            "attention_factor": 1.7,
        },
        spec.LongRopeScaling(
            short=tuple(SHORT), long=tuple(LONG), factor=16.0, original_context=128, attention_factor=1.7
        ),
    ),
]


@pytest.mark.parametrize("length", [1, 64, 65, 128, 129, 512, 513, 700, FAR])
@pytest.mark.parametrize(("said", "scaling"), SCALED)
def test_scalings_are_the_references(said: dict, scaling: RotaryScaling, length: int) -> None:
    """Frequencies and attention factor of transformers' own initialisers for texts of any length, on either side of
    the original context; given as a number that the host knows and as positions on the device."""
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=512,
        rope_parameters={"rope_theta": 10000.0, **said},
    )
    wanted, factor = ROPE_INIT_FUNCTIONS[said["rope_type"]](config, torch.device("cpu"), seq_len=length)
    angles = rotary_angles(spec.Rotary(scaling=scaling), 16)
    assert angles.factor == pytest.approx(factor, rel=1e-12)
    last = torch.tensor([[0, length - 1]])
    for found in (
        angles.at(Tokens(1, start=0), length),
        angles.at(Tokens(1, start=length - 1)),
        angles.at(Tokens(2, position=last)),
    ):
        assert torch.allclose(found.float(), wanted, rtol=3e-6, atol=0)


@pytest.mark.parametrize(("said", "scaling"), SCALED)
def test_scaled_rotations_in_bfloat16_are_right_at_a_million(said: dict, scaling: RotaryScaling) -> None:
    """Every scaling turns a bfloat16 head at position 1,000,000 as complex numbers in float64 do, and lengthens it by
    the attention factor, to bfloat16's own rounding."""
    torch.manual_seed(0)
    angles = rotary_angles(spec.Rotary(scaling=scaling), 16)
    x = torch.randn(1, 3, 2, 16).bfloat16()
    tokens = Tokens(3, start=FAR - 1)
    found = angles.rotate(x, angles.tables(tokens))
    turns = torch.polar(torch.tensor(angles.factor).double(), tokens.position.double()[..., None] * angles.at(tokens))
    real, imaginary = x.double().chunk(2, -1)
    product = torch.complex(real, imaginary) * turns[:, :, None]
    wanted = torch.cat((product.real, product.imag), -1)
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).abs().max() <= 2**-8 * wanted.abs().max()


@pytest.mark.parametrize("heads", [*range(1, 41), 71, 112])
def test_alibi_slopes_are_those_of_bloom_and_mpt(heads: int) -> None:
    """Any number of heads, powers of two or not, against both of the reference's builders."""
    ones = torch.ones(1, 2)
    bloom = build_alibi_tensor(ones, heads, torch.float32).view(heads, 2)[:, 1]
    assert torch.allclose(torch.tensor(alibi_slopes(heads)), bloom, rtol=1e-6)
    for max_bias in (8, 16):
        mpt = -build_mpt_alibi_tensor(heads, 2, max_bias)[..., 0].flatten()
        assert torch.allclose(torch.tensor(alibi_slopes(heads, max_bias)), mpt, rtol=1e-6)


def test_alibi_falls_with_distance_on_either_side() -> None:
    """-slope · |distance|, zero where a token meets itself."""
    dense = alibi_bias(4, 8.0).dense(Tokens(3, start=4), Tokens(6, start=1))
    slopes = torch.tensor(alibi_slopes(4))
    distance = (torch.arange(4, 7)[:, None] - torch.arange(1, 7)).abs()
    assert torch.equal(dense[0], -slopes[:, None, None] * distance)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (16, 1000), (4, 3), (33, 129)])
def test_buckets_are_t5s(buckets: int, max_distance: int, bidirectional: bool) -> None:
    """Every distance in ±2,000, against the reference's own function."""
    distance = torch.arange(-2000, 2001)
    wanted = T5Attention._relative_position_bucket(distance, bidirectional, buckets, max_distance)
    found = relative_bucket(distance, buckets, max_distance, bidirectional)
    assert torch.equal(found, wanted)
    assert found.min() >= 0 and found.max() < buckets


def test_relative_positions_read_their_table() -> None:
    """bias[h, t, s] = table[bucket(s - t), h], with gradients to the rows that were read, in the table's precision."""
    table = RelativePositions(spec.RelativeBuckets(buckets=8, max_distance=20, bidirectional=True), 3)
    found = table.dense(Tokens(4, start=2), Tokens(7, start=0))
    for t in range(4):
        for s in range(7):
            bucket = int(relative_bucket(torch.tensor(s - t - 2), 8, 20, True))
            assert torch.equal(found[0, :, t, s], table.weight[bucket])
    found.sum().backward()
    assert table.weight.grad is not None and table.weight.grad.sum() == 3 * 4 * 7
    assert table.to(torch.bfloat16).dense(Tokens(1, start=0), Tokens(1, start=0)).dtype == torch.float32
    assert table.to(torch.float64).dense(Tokens(1, start=0), Tokens(1, start=0)).dtype == torch.float64


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_start_at_their_offset(offset: int) -> None:
    """Position p reads row p + offset, and the last one is the size minus one."""
    learned = LearnedPositions(spec.Learned(size=5, offset=offset), 4)
    assert learned.weight.shape == (5 + offset, 4)
    assert torch.equal(learned(Tokens(5, start=0))[0], learned.weight[offset:])
    assert torch.equal(learned(Tokens(2, position=torch.tensor([[3, 0]])))[0], learned.weight[[3 + offset, offset]])
    with pytest.raises(InputError, match="reaches position 6, but the model has learned 5 positions; shorten it"):
        learned(Tokens(6, start=0))
    with pytest.raises(InputError, match="reaches position 6, but the model has learned 5 positions; shorten it"):
        learned(Tokens(1, start=5))


def test_learned_positions_that_only_the_tensor_knows_are_refused_too() -> None:
    """Given positions have no bound that the host knows; one beyond the table is the same clear error."""
    learned = LearnedPositions(spec.Learned(size=5, offset=2), 4)
    for wrong in (5, 400):
        with pytest.raises(InputError, match=f"reaches position {wrong + 1}, but the model has learned 5"):
            learned(Tokens(2, position=torch.tensor([[0, wrong]])))
    with pytest.raises(InputError, match="position -3"):
        learned(Tokens(2, position=torch.tensor([[0, -3]])))
