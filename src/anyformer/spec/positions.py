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


RotaryScaling = Annotated[Llama3Scaling, Field()]


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
