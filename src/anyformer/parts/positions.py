"""Positions: waves and tables added to embeddings, rotations of queries and keys, biases on scores.

Angles are computed from integer positions in float64 and kept in float32, whatever the model's dtype: in float32 an
angle is 0.06 rad off at position 1,000,000, in bfloat16 at position 300.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from anyformer import spec
from anyformer.errors import InputError
from anyformer.parts.linear import Embedding
from anyformer.parts.masks import Bias, Tokens


def wavelengths(base: float, dim: int) -> list[float]:
    """Angular frequencies base^(-2i/dim), i < dim/2, in radians per position (Vaswani et al. 2017, section 3.5)."""
    return [base ** (-2 * i / dim) for i in range(dim // 2)]


def angles(position: Tensor, frequencies: tuple[float, ...]) -> Tensor:
    """float64 angles [..., len(frequencies)] of integer positions [...]."""
    return position.double()[..., None] * torch.tensor(frequencies, dtype=torch.float64, device=position.device)


def sinusoids(position: Tensor, dim: int, base: float = 10000.0, interleaved: bool = True) -> Tensor:
    """float32 [..., D] waves of integer positions [...] (Vaswani et al. 2017, section 3.5)."""
    angle = angles(position, tuple(wavelengths(base, dim)))
    waves = (angle.sin().float(), angle.cos().float())
    return torch.stack(waves, -1).flatten(-2) if interleaved else torch.cat(waves, -1)


class SinusoidalPositions(nn.Module):
    """Adds fixed waves (Vaswani et al. 2017, section 3.5)."""

    def __init__(self, position: spec.Sinusoidal, dim: int) -> None:
        super().__init__()
        self.dim, self.base, self.interleaved = dim, position.base, position.interleaved

    def forward(self, tokens: Tokens) -> Tensor:
        return sinusoids(tokens.position, self.dim, self.base, self.interleaved)


class LearnedPositions(Embedding):
    """A learned vector per position; position p reads row p + offset."""

    def __init__(self, position: spec.Learned, dim: int) -> None:
        super().__init__(position.size + position.offset, dim)
        self.size, self.offset = position.size, position.offset

    def forward(self, input: Tokens) -> Tensor:  # type: ignore[override]
        tokens = input
        if tokens.high is not None and tokens.high >= self.size:
            raise self._beyond(tokens.high)
        try:
            return super().forward(tokens.position + self.offset)
        except IndexError:
            position = tokens.position
            raise self._beyond(int(position.max() if position.max() >= self.size else position.min())) from None

    def _beyond(self, position: int) -> InputError:
        if position < 0:
            return InputError(f"position {position} does not exist; positions count from 0")
        return InputError(
            f"the text reaches position {position + 1}, but the model has learned {self.size} positions; shorten it, "
            f"or use a model whose positions are not learned"
        )


@dataclass(frozen=True, eq=False)
class RotaryAngles:
    """The frequencies of a rotary spec, worked out once: `tables` gives what a forward pass needs of them."""

    frequencies: tuple[float, ...]
    interleaved: bool
    dim: int

    def tables(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """cos and signed sin, float32 [B or 1, T, 1, dim], for `rotate`."""
        angle = angles(tokens.position, self.frequencies)
        cos, sin = angle.cos().float(), angle.sin().float()
        if self.interleaved:
            cos, sin = cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
        else:
            cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return cos[:, :, None], sin[:, :, None]

    def rotate(self, x_BTHC: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Turn the first `dim` channels of every head by its position's angles (Su et al. 2021, eq. 34).

        A channel becomes itself times cos plus its partner times ±sin; the partner is the neighbour in the interleaved
        layout, and the channel half a head away in the other.
        """
        cos, sin = tables
        whole = self.dim == x_BTHC.shape[-1]
        x = x_BTHC if whole else x_BTHC[..., : self.dim]
        if self.interleaved:
            partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        else:
            partner = x.roll(self.dim // 2, -1)
        turned = torch.addcmul(x * cos, partner, sin).to(x.dtype)
        return turned if whole else torch.cat((turned, x_BTHC[..., self.dim :]), -1)


@cache
def rotary_angles(rotary: spec.Rotary, head_dim: int) -> RotaryAngles:
    """The angles of a rotary spec; one object for all layers that share it, so that tables are made once a forward."""
    dim = rotary.dim or head_dim
    frequencies = wavelengths(rotary.base, dim)
    if rotary.scaling is not None:
        frequencies = [_llama3(frequency, rotary.scaling) for frequency in frequencies]
    return RotaryAngles(tuple(frequencies), rotary.interleaved, dim)


def _llama3(frequency: float, scaling: spec.Llama3Scaling) -> float:
    """Llama 3.1's rule (Grattafiori et al. 2024, section 3.4.3, as published with the weights)."""
    turns = scaling.original_context * frequency / (2 * math.pi)
    if turns < scaling.low:
        return frequency / scaling.factor
    if turns > scaling.high:
        return frequency
    smooth = (turns - scaling.low) / (scaling.high - scaling.low)
    return (1 - smooth) * frequency / scaling.factor + smooth * frequency


def alibi_slopes(heads: int, max_bias: float = 8.0) -> list[float]:
    """One slope a head (Press et al. 2022, section 3): powers of 2^(-max_bias/n) for n a power of two; for other
    numbers of heads, those of the power of two below, then every other one of the power above."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-max_bias * (i + 1) / below) for i in range(below)]
    return slopes + [2 ** (-max_bias * (2 * i + 1) / (2 * below)) for i in range(heads - below)]


class AlibiBias(Bias):
    """-slope · |distance| (Press et al. 2022)."""

    def __init__(self, heads: int, max_bias: float) -> None:
        self.slopes = alibi_slopes(heads, max_bias)
        self._on: dict[torch.device, Tensor] = {}

    @property
    def heads(self) -> int:
        return len(self.slopes)

    def rule(self, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        if head.device not in self._on:
            self._on[head.device] = torch.tensor(self.slopes, device=head.device)
        return -self._on[head.device][head] * (q - k).abs()


@cache
def alibi_bias(heads: int, max_bias: float) -> AlibiBias:
    """One bias object for all layers with these heads, so that it is laid out once a forward."""
    return AlibiBias(heads, max_bias)


def relative_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of each distance k - q (Raffel et al. 2020, section 2.1): half of them count single steps, the rest
    grow logarithmically up to `max_distance`; keys ahead have their own half where the model is bidirectional."""
    base = torch.zeros_like(distance)
    if bidirectional:
        buckets //= 2
        base = (distance > 0).long() * buckets
        distance = distance.abs()
    else:
        distance = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return base + torch.where(distance < exact, distance, far)


class RelativePositions(Embedding, Bias):
    """T5's table of biases, [buckets, H]; a bias on scores whose values are parameters."""

    def __init__(self, position: spec.RelativeBuckets, heads: int) -> None:
        super().__init__(position.buckets, heads)
        self.max_distance, self.bidirectional = position.max_distance, position.bidirectional

    @property
    def heads(self) -> int:
        return self.embedding_dim

    def rule(self, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        bucket = relative_bucket(k - q, self.num_embeddings, self.max_distance, self.bidirectional)
        found = self.weight[bucket, head]
        return found.to(torch.promote_types(found.dtype, torch.float32))
