"""How a Transformer knows where a token stands: five ideas, as data."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from anyformer.spec.base import Flag, NonNegativeInt, Part, PositiveFloat, PositiveInt


class Llama3Scaling(Part, frozen=True):
    """Llama 3.1's stretched rotary frequencies: low ones divided by `factor`, high ones kept, a ramp between."""

    kind: Literal["llama3"] = "llama3"
    factor: PositiveFloat
    low: PositiveFloat = 1.0
    high: PositiveFloat = 4.0
    original_context: PositiveInt


class LinearScaling(Part, frozen=True):
    """Position interpolation (Chen et al. 2023, eq. 4): all rotary frequencies divided by `factor`."""

    kind: Literal["linear"] = "linear"
    factor: PositiveFloat


class DynamicScaling(Part, frozen=True):
    """Dynamic NTK scaling (Peng et al. 2023, section 3.3): the rotary base grows with the length reached.

    Texts of up to `original_context` tokens keep the base; one n times as long has it multiplied by
    (`factor`·n - (`factor` - 1))^(d/(d-2)), d the channels that turn.
    """

    kind: Literal["dynamic"] = "dynamic"
    factor: PositiveFloat
    original_context: PositiveInt


class YarnScaling(Part, frozen=True):
    """YaRN (Peng et al. 2023, section 3.2): slow rotary frequencies divided by `factor`, fast ones kept, a ramp.

    Fast are channels that turn more than `beta_fast` times within `original_context`, slow those that turn less than
    `beta_slow` times; the ramp runs over the channels' indices, rounded outwards with `truncate`. cos and sin are
    multiplied by `attention_factor` (None: 0.1·ln(`factor`) + 1, the paper's eq. 22).
    """

    kind: Literal["yarn"] = "yarn"
    factor: PositiveFloat
    original_context: PositiveInt
    beta_fast: PositiveFloat = 32.0
    beta_slow: PositiveFloat = 1.0
    truncate: Flag = True
    attention_factor: PositiveFloat | None = None


class LongRopeScaling(Part, frozen=True):
    """LongRoPE (Ding et al. 2024, section 3): every rotary frequency has a divisor of its own, found by search.

    `short` holds the divisors for texts of up to `original_context` tokens, `long` those for longer ones. cos and sin
    are multiplied by `attention_factor` (None: √(1 + ln(`factor`) / ln(`original_context`))) whatever the length.
    """

    kind: Literal["longrope"] = "longrope"
    short: tuple[PositiveFloat, ...]
    long: tuple[PositiveFloat, ...]
    factor: PositiveFloat
    original_context: PositiveInt
    attention_factor: PositiveFloat | None = None

    @model_validator(mode="after")
    def _divisors_match(self) -> LongRopeScaling:
        if len(self.short) != len(self.long):
            raise ValueError(
                f"{len(self.short)} short and {len(self.long)} long divisors; there must be one of each for every pair "
                f"of channels that turn"
            )
        return self


RotaryScaling = Annotated[
    LinearScaling | DynamicScaling | YarnScaling | LongRopeScaling | Llama3Scaling, Field(discriminator="kind")
]


class Rotary(Part, frozen=True):
    """Rotary position embedding (Su et al. 2021, eq. 34): queries and keys turned by an angle per position.

    `dim` is how many of each head's channels turn (None: all). `interleaved` pairs channels (0,1), (2,3) ... as the
    paper and GPT-J do; otherwise channel i pairs with i + dim/2, as NeoX and LLaMA do.
    """

    kind: Literal["rotary"] = "rotary"
    base: PositiveFloat = 10000.0
    dim: PositiveInt | None = None
    interleaved: Flag = False
    scaling: RotaryScaling | None = None

    def turned(self, head_dim: int) -> int:
        """How many of a head's channels turn. Raises `ValueError` where the head cannot have these positions."""
        turned = self.dim or head_dim
        if turned % 2 or turned > head_dim:
            raise ValueError(
                f"rotary positions turn {turned} of head_dim={head_dim} channels; it must be an even number of at most "
                f"head_dim"
            )
        if isinstance(self.scaling, LongRopeScaling) and len(self.scaling.short) != turned // 2:
            raise ValueError(
                f"LongRoPE has {len(self.scaling.short)} divisors for {turned} channels that turn; it must be one for "
                f"every two channels"
            )
        return turned


class Alibi(Part, frozen=True):
    """Attention with linear biases (Press et al. 2022): a head's score falls linearly with distance.

    Slopes are the geometric sequence 2^(-8/n), 2^(-16/n) ...; for a number of heads that is not a power of two, the
    paper's interpolation.
    """

    kind: Literal["alibi"] = "alibi"
    max_bias: PositiveFloat = 8.0


class RelativeBuckets(Part, frozen=True):
    """T5's learned bias per head and bucket of distance (Raffel et al. 2020, section 2.1).

    Half of the buckets count single steps, the other half grow logarithmically up to `max_distance`.
    """

    kind: Literal["relative_buckets"] = "relative_buckets"
    buckets: PositiveInt = 32
    max_distance: PositiveInt = 128
    bidirectional: Flag

    @model_validator(mode="after")
    def _buckets_suffice(self) -> RelativeBuckets:
        exact = self.buckets // (4 if self.bidirectional else 2)
        if exact < 1 or self.max_distance <= exact:
            raise ValueError(
                f"{self.buckets} buckets up to distance {self.max_distance} leave none to grow; use more buckets or a "
                f"larger max_distance"
            )
        return self


AttentionPosition = Annotated[Rotary | Alibi | RelativeBuckets, Field(discriminator="kind")]


class Sinusoidal(Part, frozen=True):
    """Fixed sine and cosine waves added to the embeddings (Vaswani et al. 2017, section 3.5).

    `interleaved` alternates sine and cosine channels as the paper writes them; otherwise all sines stand before all
    cosines, as Marian and many checkpoints have it.
    """

    kind: Literal["sinusoidal"] = "sinusoidal"
    base: PositiveFloat = 10000.0
    interleaved: Flag = True


class Learned(Part, frozen=True):
    """A learned vector per position, added to the embeddings; positions from `size` on do not exist.

    The vector of position p stands in row p + `offset` of a table with `size + offset` rows (RoBERTa: its padding id
    plus one; BART and OPT: 2).
    """

    kind: Literal["learned"] = "learned"
    size: PositiveInt
    offset: NonNegativeInt = 0


EmbeddingPosition = Annotated[Sinusoidal | Learned, Field(discriminator="kind")]
