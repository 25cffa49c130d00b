"""What each metadata key of a GGUF file says of a spec.

Source: the GGUF specification of the ggml project (docs/gguf.md), and llama.cpp for what it leaves open.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi, sqrt
from typing import Any, NamedTuple, TypeVar

from anyformer.families.config import Config
from anyformer.spec import (
    Attention,
    FeedForward,
    Llama3Scaling,
    LongRopeScaling,
    Mixer,
    Norm,
    Rotary,
    RoutedExperts,
    Stack,
    Transformer,
    YarnScaling,
)

M = TypeVar("M", bound=Mixer)

#: How embeddings are pooled, by the numbers that `pooling_type` has for it.
POOLING = {"mean": 1, "first": 2, "last": 3}

#: What makes shares of the router's scores, by the numbers that `expert_gating_func` has for it.
SOFTMAX, SIGMOID = 1, 2


class Fact(NamedTuple):
    """What a metadata key says: how `Config` reads it, what it is for a spec (None: it says nothing about such a spec),
    and what its absence means (None: nothing)."""

    read: Callable[..., Any]
    of: Callable[[Transformer], Any]
    absent: Any = None


def mixer_of(stack: Stack, kind: type[M]) -> M | None:
    """The first mixer of that kind."""
    found = (part.mixer for block in stack.pattern for part in block.branches if isinstance(part.mixer, kind))
    return next(found, None)


def _attention(field: str, latent: Callable[[Any], Any] | None = None) -> Callable[[Transformer], Any]:
    """A field of attention, or what is told instead of attention over latent rows."""

    def of(spec: Transformer) -> Any:
        attention = attention_of(spec)
        return latent(attention) if latent and hasattr(attention, "latent") else getattr(attention, field, None)

    return of


def _causal(spec: Transformer) -> bool:
    return _attention("visibility", lambda rows: "causal")(spec) == "causal"


def _latent(told: Callable[[Any], Any]) -> Callable[[Transformer], Any]:
    """What is told of attention over latent rows alone."""
    return _attention("", told)


def _experts(field: str, otherwise: Any) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(mixer_of(spec.output, RoutedExperts), field, otherwise)


def _gating(spec: Transformer) -> int:
    """Shares are a softmax over experts, but for those in groups."""
    return SIGMOID if _experts("groups", None)(spec) else SOFTMAX


def _shared_experts(spec: Transformer) -> int:
    experts = mixer_of(spec.output, RoutedExperts)
    return (experts.shared_hidden or 0) // experts.hidden if experts is not None else 0


def _leading_dense(spec: Transformer) -> int:
    """How many layers stand before the first one with experts, if there are any such."""
    routed = [any(isinstance(part.mixer, RoutedExperts) for part in block.branches) for block in spec.output.layers()]
    return routed.index(True) if any(routed) else 0


def _norm_eps(kind: str) -> Callable[[Transformer], Any]:
    def eps(spec: Transformer) -> float | None:
        norms = [part.norm for part in spec.output.pattern[-1].branches if isinstance(part.norm, Norm)]
        return norms[0].eps if norms and norms[0].kind == kind else None

    return eps


def attention_of(spec: Transformer, windowed: bool = False) -> Any:
    """The first attention, over keys or over latent rows; one with a window, or without, if there is any."""
    found = [part.mixer for block in spec.output.pattern for part in block.branches if part.mixer.role == "attention"]
    fitting = (mixer for mixer in found if (getattr(mixer, "window", None) is not None) is windowed)
    return next(fitting, found[0] if found else None)


def position_of(spec: Transformer, windowed: bool = False) -> Any:
    return getattr(attention_of(spec, windowed), "position", None)


def _position(field: str, windowed: bool = False) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(position_of(spec, windowed), field, None)


def turned_channels(spec: Transformer) -> int | None:
    position, width = position_of(spec), _attention("head_dim", lambda rows: rows.rotary_dim)
    return position.dim or width(spec) if isinstance(position, Rotary) else None


def _scaling(field: str) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(getattr(position_of(spec), "scaling", None), field, None)


def _scaling_type(spec: Transformer) -> str | None:
    # Llama 3's has no name there: its divisors are a tensor.
    kind = _scaling("kind")(spec)
    return None if not isinstance(position_of(spec), Rotary) else "none" if kind in (None, "llama3") else kind


def _scaling_factor(spec: Transformer) -> float | None:
    return _scaling("factor")(spec) if _scaling_type(spec) in ("linear", "yarn") else None


def _attention_factor(spec: Transformer) -> float | None:
    """What multiplies cos and sin: for YaRN beyond the paper's own factor, which its readers compute."""
    scaling = _scaling("kind")(spec) and getattr(position_of(spec), "scaling", None)
    if isinstance(scaling, YarnScaling):
        usual = 1.0 if _log_multiplier(spec) else yarn_factor(scaling.factor)
        return 1.0 if scaling.attention_factor is None else scaling.attention_factor / usual
    if isinstance(scaling, LongRopeScaling):
        given = scaling.attention_factor
        return longrope_factor(scaling.factor, scaling.original_context) if given is None else given
    return None


def _log_multiplier(spec: Transformer) -> float:
    """What multiplies ln(factor) in YaRN's scale of scores; with it, its readers leave cos and sin as they are."""
    return 0.1 * getattr(attention_of(spec), "mscale", 0.0)


def yarn_factor(factor: float) -> float:
    return 0.1 * log(max(factor, 1.0)) + 1


def longrope_factor(factor: float, original: int) -> float:
    return sqrt(1 + log(max(factor, 1.0)) / log(max(original, 2)))


def _window(spec: Transformer) -> int:
    """The number of keys that a query sees, itself included; where it looks both ways, without itself."""
    left, right = getattr(attention_of(spec, windowed=True), "window", None) or (None, None)
    return (left or 0) if right is None else 2 * (right - 1)


def _windowed(spec: Transformer) -> list[bool] | None:
    """Which layers have a window, where not all of them do."""
    found = [any(mixer.window for mixer in _attentions(block)) for block in spec.output.layers()]
    return found if any(found) and not all(found) else None


def _attentions(block: Any) -> list[Attention]:
    return [part.mixer for part in block.branches if isinstance(part.mixer, Attention)]


def _hidden(spec: Transformer) -> int | None:
    mixer = mixer_of(spec.output, FeedForward) or mixer_of(spec.output, RoutedExperts)
    return mixer.hidden if mixer is not None else None


def _soft_cap(part: Any) -> float:
    return getattr(part, "soft_cap", None) or 0.0


def _first(spec: Transformer) -> Stack:
    return next(iter(spec.stacks().values()))


def _decoder_depth(spec: Transformer) -> int | None:
    return spec.decoder.depth if spec.encoder is not None and spec.decoder is not None else None


def _stated(config: Config, *names: str, default: Any = None) -> Any:
    return config.value(*names, default=default)


def llama3_divisors(scaling: Llama3Scaling, base: float, pairs: int) -> list[float]:
    turns = [scaling.original_context / (2 * pi * base ** (index / pairs)) for index in range(pairs)]
    ramps = [min(1.0, max(0.0, (turn - scaling.low) / (scaling.high - scaling.low))) for turn in turns]
    return [1 / ((1 - ramp) / scaling.factor + ramp) for ramp in ramps]


#: Every key under the architecture's name that says something of a model.
FACTS: dict[str, Fact] = {
    "vocab_size": Fact(Config.size, lambda spec: spec.output.embeddings.vocabulary),
    "context_length": Fact(Config.size, lambda spec: spec.context),
    "embedding_length": Fact(Config.size, lambda spec: spec.output.dim),
    "block_count": Fact(Config.size, lambda spec: _first(spec).depth),
    "decoder_block_count": Fact(Config.size, _decoder_depth),
    "feed_forward_length": Fact(Config.size, _hidden),
    "use_parallel_residual": Fact(Config.flag, lambda spec: spec.output.pattern[0].parallel, False),
    "expert_count": Fact(Config.integer, _experts("experts", 0), 0),
    "expert_used_count": Fact(Config.integer, _experts("top_k", 0), 0),
    "expert_feed_forward_length": Fact(Config.size, _experts("hidden", None)),
    "expert_shared_count": Fact(Config.integer, _shared_experts, 0),
    "expert_group_count": Fact(Config.integer, _experts("groups", 0), 0),
    "expert_group_used_count": Fact(Config.integer, _experts("top_groups", 0), 0),
    "expert_gating_func": Fact(
        Config.integer, lambda spec: SIGMOID if _experts("groups", 0)(spec) else SOFTMAX, SOFTMAX
    ),
    "expert_weights_norm": Fact(Config.flag, _experts("normalize", True), True),
    "expert_weights_scale": Fact(Config.number, _experts("factor", 1.0), 1.0),
    "leading_dense_block_count": Fact(Config.integer, _leading_dense, 0),
    "attention.head_count": Fact(Config.size, _attention("heads")),
    # Attention over latent rows is told as what it comes to: one key for all heads, a whole row.
    "attention.head_count_kv": Fact(Config.size, _attention("kv_heads", lambda rows: 1)),
    "attention.key_length": Fact(Config.size, _attention("head_dim", lambda rows: rows.latent + rows.rotary_dim)),
    "attention.value_length": Fact(Config.size, _attention("head_dim", lambda rows: rows.latent)),
    "attention.key_length_mla": Fact(Config.size, _latent(lambda rows: rows.key_dim + rows.rotary_dim)),
    "attention.value_length_mla": Fact(Config.size, _latent(lambda rows: rows.value_dim)),
    "attention.kv_lora_rank": Fact(Config.size, _latent(lambda rows: rows.latent)),
    "attention.q_lora_rank": Fact(Config.integer, _latent(lambda rows: rows.query_latent or 0), 0),
    "attention.layer_norm_epsilon": Fact(Config.number, _norm_eps("layer")),
    "attention.layer_norm_rms_epsilon": Fact(Config.number, _norm_eps("rms")),
    "attention.causal": Fact(
        Config.flag, lambda spec: _attention("visibility", lambda rows: "causal")(spec) == "causal", True
    ),
    "attention.sliding_window": Fact(Config.integer, _window, 0),
    "attention.sliding_window_pattern": Fact(_stated, _windowed),
    "attention.max_alibi_bias": Fact(Config.number, _position("max_bias"), 0.0),
    "attention.relative_buckets_count": Fact(Config.size, lambda spec: getattr(spec.output.relative, "buckets", None)),
    "attn_logit_softcapping": Fact(Config.number, lambda spec: _soft_cap(attention_of(spec)), 0.0),
    "final_logit_softcapping": Fact(Config.number, lambda spec: _soft_cap(spec.head), 0.0),
    "rope.dimension_count": Fact(Config.size, turned_channels),
    "rope.freq_base": Fact(Config.number, _position("base")),
    "rope.freq_base_swa": Fact(Config.number, lambda spec: _windowed(spec) and _position("base", windowed=True)(spec)),
    "rope.scaling.type": Fact(Config.text, _scaling_type, "none"),
    "rope.scaling.factor": Fact(Config.number, _scaling_factor),
    "rope.scaling.original_context_length": Fact(Config.size, _scaling("original_context")),
    "rope.scaling.attn_factor": Fact(Config.number, _attention_factor, 1.0),
    "rope.scaling.yarn_beta_fast": Fact(Config.number, _scaling("beta_fast"), 32.0),
    "rope.scaling.yarn_beta_slow": Fact(Config.number, _scaling("beta_slow"), 1.0),
    "rope.scaling.yarn_log_multiplier": Fact(Config.number, _log_multiplier, 0.0),
    "pooling_type": Fact(Config.integer, lambda spec: POOLING.get(getattr(spec.head, "pooling", ""), 0), 0),
}

#: Keys that mean nothing at this value, and another model at any other.
DEFAULTS: dict[str, Any] = {
    "attention.clamp_kqv": 0.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
}

#: Keys that change nothing in what a model computes.
IGNORED = {
    "tensor_data_layout": "the names of the tensors say it",
    "rope.scaling.finetuned": "a note on the training",
    "decoder_start_token_id": "an id for generation to begin with",
}
