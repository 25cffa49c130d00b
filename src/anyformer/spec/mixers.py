"""What a branch can do with the residual stream: attend, feed forward, or choose among experts. As data."""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import SerializeAsAny as _AsAny
from pydantic import model_validator
from pydantic.functional_validators import BeforeValidator

from anyformer.errors import SpecError
from anyformer.spec.base import Flag, NonNegativeFloat, Part, PositiveFloat, PositiveInt, Probability
from anyformer.spec.positions import AttentionPosition

Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "sigmoid", "tanh"]


class Norm(Part, frozen=True):
    """Layer normalisation (Ba et al. 2016), or its root-mean-square form (Zhang & Sennrich 2019).

    `unit_offset`: the stored weight is w in (1 + w), as Gemma has it. `bias` and `unit_offset` belong to one kind each.
    """

    kind: Literal["layer", "rms"]
    eps: PositiveFloat = 1e-5
    weight: Flag = True
    bias: Flag = False
    unit_offset: Flag = False

    @model_validator(mode="after")
    def _fits(self) -> Norm:
        if self.kind == "rms" and self.bias:
            raise ValueError("an rms norm has no bias; use kind 'layer' or bias false")
        if self.unit_offset and not self.weight:
            raise ValueError("unit_offset needs a weight to offset")
        if self.bias and not self.weight:
            raise ValueError("a norm with a bias has a weight too")
        return self


class Mixer(Part, frozen=True):
    """Base of all mixers. A family with a mixer of its own subclasses this in its file and calls `register_mixer`."""

    kind: str
    #: What the branch is called in parameter names and traces.
    role: ClassVar[str]

    @property
    def name(self) -> str:
        """What the branch is called in parameter names and traces."""
        return self.role

    def module(self) -> Any:
        """The class of the `nn.Module` that runs this mixer, built as `Class(spec, dim)`.

        The parts of the house are found by `kind`; only a mixer from a family's own file overrides this (and imports
        torch inside, so that reading a spec never waits for it).
        """
        raise SpecError(
            f"the mixer kind '{self.kind}' has no module; override Mixer.module in the file that defines it"
        )

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter by its name in the module, for a residual stream `dim` wide.

        `source_dim` is the width of what cross-attention reads, where that differs. Mixers of a family override this.
        """
        raise NotImplementedError

    def parameters(self, dim: int) -> dict[str, int]:
        """How many numbers each parameter holds, by its name in the module."""
        return {name: prod(shape) for name, shape in self.shapes(dim).items()}

    def active(self, dim: int, source_dim: int | None = None) -> dict[str, int]:
        """How many of those one token meets."""
        return {name: prod(shape) for name, shape in self.shapes(dim, source_dim).items()}

    def rows(self, parameter: str, tokens: int, cached: int = 0, source: int = 0) -> int:
        """How many rows a matrix is multiplied with when so many tokens pass after `cached` ones, over a `source` of so
        many; 0 for a table, whose rows are looked up."""
        return tokens

    def score_flops(self, tokens: int, cached: int = 0, source: int = 0, dense: bool = False) -> int:
        """FLOPs of scores and of values weighted by them, for the pairs of query and key that see each other; with
        `dense`, for all pairs. 0 for what does not attend."""
        return 0

    def kept(self, tokens: int, source: int = 0) -> int:
        """How many numbers a cache keeps of `tokens` tokens, and of a `source` of so many."""
        return 0

    def kept_rows(self) -> tuple[int, ...]:
        """How wide the rows are in which a cache keeps a token; none where it keeps nothing, or what is a source's."""
        return ()


class Attention(Mixer, frozen=True):
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) in every form in use.

    - `heads` query heads share `kv_heads` key/value heads: equal numbers are multi-head attention, 1 is multi-query
      (Shazeer 2019), between is grouped-query (Ainslie et al. 2023). Each head is `head_dim` wide.
    - `source`: keys and values come from the stream itself (`self`) or from the encoder (`cross`).
    - `visibility`: a query sees keys at or before it (`causal`), all (`full`), or all of its document's prefix and
      causally beyond (`prefix`).
    - `window`: (left, right), in keys, *the query's own position included* on either side; None leaves a side open.
    - `position`: rotary, ALiBi, a relative-bucket table of this layer's own, or nothing.
    - `bias` is that of query, key and value, `output_bias` that of the output projection.
    - `query_key_norm` normalises queries and keys before they meet, over each head's channels or, with
      `query_key_norm_over="width"`, over all heads' channels at once.
    - `soft_cap` c turns scores s into c·tanh(s/c) (Gemma 2). `scale` multiplies scores (None: 1/√head_dim).
    - `sinks`: a learned logit per head that takes part in the softmax and has no value (gpt-oss).
    """

    kind: Literal["attention"] = "attention"
    heads: PositiveInt
    kv_heads: PositiveInt
    head_dim: PositiveInt
    source: Literal["self", "cross"] = "self"
    visibility: Literal["causal", "full", "prefix"]
    window: tuple[PositiveInt | None, PositiveInt | None] | None = None
    position: AttentionPosition | None = None
    bias: Flag = False
    output_bias: Flag = False
    query_key_norm: Norm | None = None
    query_key_norm_over: Literal["head", "width"] = "head"
    soft_cap: PositiveFloat | None = None
    scale: PositiveFloat | None = None
    sinks: Flag = False
    dropout: Probability = 0.0

    role: ClassVar[str] = "attention"

    @property
    def name(self) -> str:
        return "cross_attention" if self.source == "cross" else "attention"

    @model_validator(mode="after")
    def _fits(self) -> Attention:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"kv_heads={self.kv_heads} does not divide heads={self.heads}; every key/value head must serve "
                f"the same number of query heads"
            )
        if self.position is not None and self.position.kind == "rotary":
            self.position.turned(self.head_dim)
        if self.source == "cross" and (self.position is not None or self.window is not None):
            raise ValueError("cross-attention has neither positions nor a window")
        if self.source == "cross" and self.visibility != "full":
            raise ValueError("cross-attention sees all of its source; use visibility 'full'")
        return self

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        source_dim = dim if source_dim is None or self.source == "self" else source_dim
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes = linear_shapes("query", query, dim, self.bias)
        shapes |= linear_shapes("key", key, source_dim, self.bias) | linear_shapes("value", key, source_dim, self.bias)
        shapes |= linear_shapes("output", dim, query, self.output_bias)
        widths = (query, key) if self.query_key_norm_over == "width" else (self.head_dim, self.head_dim)
        shapes |= norm_shapes("query_norm", self.query_key_norm, widths[0])
        shapes |= norm_shapes("key_norm", self.query_key_norm, widths[1])
        if self.sinks:
            shapes["sinks"] = (self.heads,)
        if self.position is not None and self.position.kind == "relative_buckets":
            shapes["relative.weight"] = (self.position.buckets, self.heads)
        return shapes

    def rows(self, parameter: str, tokens: int, cached: int = 0, source: int = 0) -> int:
        if self.source == "cross" and parameter in ("key.weight", "value.weight"):
            return 0 if cached else source
        return 0 if parameter == "relative.weight" else tokens

    def pairs(self, tokens: int, cached: int = 0, source: int = 0, dense: bool = False) -> int:
        """How many (query, key) pairs may see each other; with `dense`, how many there are."""
        if self.source == "cross":
            return tokens * source
        if dense:
            return tokens * (cached + tokens)
        left, right = self.window or (None, None)
        return visible_pairs(tokens, cached, left, right if self.visibility == "full" else 1)

    def score_flops(self, tokens: int, cached: int = 0, source: int = 0, dense: bool = False) -> int:
        return 4 * self.heads * self.head_dim * self.pairs(tokens, cached, source, dense)

    def kept(self, tokens: int, source: int = 0) -> int:
        horizon = self.window[0] if self.window is not None else None
        seen = source if self.source == "cross" else tokens if horizon is None else min(tokens, horizon)
        return 2 * self.kv_heads * self.head_dim * seen

    def kept_rows(self) -> tuple[int, ...]:
        return () if self.source == "cross" else (self.head_dim,) * (2 * self.kv_heads)


class FeedForward(Mixer, frozen=True):
    """Two matrices with an activation between (Vaswani et al. 2017, eq. 2), or the gated form of three
    (Shazeer 2020): down(activation(gate(x)) · up(x)). `hidden` is F, the width between."""

    kind: Literal["feed_forward"] = "feed_forward"
    hidden: PositiveInt
    activation: Activation = "gelu"
    gated: Flag = False
    bias: Flag = False
    dropout: Probability = 0.0

    role: ClassVar[str] = "feed_forward"

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        shapes = linear_shapes("gate", self.hidden, dim, self.bias) if self.gated else {}
        shapes |= linear_shapes("up", self.hidden, dim, self.bias)
        return shapes | linear_shapes("down", dim, self.hidden, self.bias)


class RoutedExperts(Mixer, frozen=True):
    """A router sends each token to `top_k` of `experts` feed-forwards and sums them by weight (Shazeer et al. 2017,
    eq. 2). What all mixtures have; a family with routing or experts of its own subclasses this in its file.

    - `normalize`: the chosen weights are made to sum to one.
    - `shared_hidden`: the width of an expert that every token passes through besides (DeepSeekMoE); with `shared_gate`
      it is weighted by a sigmoid of its own (Qwen2-MoE).
    - `balance`: coefficient of the load-balancing loss (Switch Transformer, eq. 4 to 6), padding left out.
    """

    experts: PositiveInt
    top_k: PositiveInt
    hidden: PositiveInt
    activation: Activation = "silu"
    gated: Flag = True
    normalize: Flag = True
    shared_hidden: PositiveInt | None = None
    shared_gate: Flag = False
    balance: NonNegativeFloat = 0.0

    role: ClassVar[str] = "experts"
    #: The parameters that hold something for each expert, along their first dimension, where there are any so called.
    STACKED: ClassVar[tuple[str, ...]] = ("gate", "gate_bias", "up", "up_bias", "down", "down_bias")

    @model_validator(mode="after")
    def _fits(self) -> RoutedExperts:
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k} is more than experts={self.experts}")
        if self.shared_gate and self.shared_hidden is None:
            raise ValueError("shared_gate needs a shared expert; set shared_hidden")
        return self

    def shapes(self, dim: int, source_dim: int | None = None) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {"router.weight": (self.experts, dim)}
        inward = ("gate", "up") if self.gated else ("up",)
        shapes |= dict.fromkeys(inward, (self.experts, self.hidden, dim))
        shapes["down"] = (self.experts, dim, self.hidden)
        if self.shared_hidden is not None:
            shapes |= {f"shared.{name}.weight": (self.shared_hidden, dim) for name in inward}
            shapes["shared.down.weight"] = (dim, self.shared_hidden)
        if self.shared_gate:
            shapes["shared_gate.weight"] = (1, dim)
        return shapes

    def active(self, dim: int, source_dim: int | None = None) -> dict[str, int]:
        numbers = self.parameters(dim)
        chosen = {name: numbers[name] * self.top_k // self.experts for name in self.STACKED if name in numbers}
        return numbers | chosen


class MixtureOfExperts(RoutedExperts, frozen=True):
    """Shares are a softmax over all experts, of which the best `top_k` count; experts have no biases (Mixtral, Jiang
    et al. 2024)."""

    kind: Literal["mixture_of_experts"] = "mixture_of_experts"


def visible_pairs(tokens: int, cached: int = 0, left: int | None = None, right: int | None = 1) -> int:
    """How many pairs of a query, of `tokens`, and a key, of those and the `cached` before them, see each other: a query
    `left` keys back and `right` ahead, itself included on either side; None leaves a side open."""

    def climb(length: int, most: int | None) -> int:
        """1 + 2 + 3 ... of so many terms, none above `most`."""
        rising = length if most is None else min(length, most)
        return rising * (rising + 1) // 2 + (length - rising) * rising

    behind = climb(cached + tokens, left) - climb(cached, left)
    return behind + climb(tokens, right) - tokens


def linear_shapes(name: str, outputs: int, inputs: int, bias: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a linear's parameters, [out, in] as torch keeps them."""
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return weight | ({f"{name}.bias": (outputs,)} if bias else {})


def norm_shapes(name: str, norm: Norm | None, dim: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the parameters of a norm over `dim` channels; none where there is no norm."""
    has = {} if norm is None else {"weight": norm.weight, "bias": norm.bias}
    return {f"{name}.{part}": (dim,) for part, present in has.items() if present}


M = TypeVar("M", bound=Mixer)

_MIXERS: dict[str, type[Mixer]] = {
    "attention": Attention,
    "feed_forward": FeedForward,
    "mixture_of_experts": MixtureOfExperts,
}


def register_mixer(mixer: type[M]) -> type[M]:
    """Make a family's own mixer readable from specs by its `kind`. Usable as a decorator."""
    _MIXERS[mixer.model_fields["kind"].default] = mixer
    return mixer


def registered_mixers() -> tuple[type[Mixer], ...]:
    """Every kind of mixer that a spec can name: those of the house and those that families have registered."""
    return tuple(_MIXERS.values())


def _by_kind(data: Any) -> Any:
    if not isinstance(data, dict):
        return data
    kind = data.get("kind")
    if not isinstance(kind, str) or kind not in _MIXERS:
        raise ValueError(f"no mixer is of kind {kind!r}; known kinds: {', '.join(sorted(_MIXERS))}")
    return _MIXERS[kind].model_validate(data)


#: Any mixer, told apart by its `kind`; open to those that families register.
AnyMixer = Annotated[_AsAny[Mixer], BeforeValidator(_by_kind)]

__all__ = [
    "Activation",
    "AnyMixer",
    "Attention",
    "FeedForward",
    "Mixer",
    "MixtureOfExperts",
    "Norm",
    "Probability",
    "RoutedExperts",
    "linear_shapes",
    "norm_shapes",
    "register_mixer",
    "registered_mixers",
    "visible_pairs",
]
