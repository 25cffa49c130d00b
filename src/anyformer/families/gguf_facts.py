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
    MixtureOfExperts,
    Norm,
    Rotary,
    Stack,
    Transformer,
    YarnScaling,
)

M = TypeVar("M", bound=Mixer)

#: How embeddings are pooled, by the numbers that `pooling_type` has for it.
POOLING = {"mean": 1, "first": 2, "last": 3}


class Fact(NamedTuple):
    """What a metadata key says: how `Config` reads it, what it is for a spec (None: it says nothing about such a spec),
    and what its absence means (None: nothing)."""

    read: Callable[..., Any]
    of: Callable[[Transformer], Any]
    absent: Any = None


def mixer_of(stack: Stack, kind: type[M], fits: Callable[[M], bool] = lambda mixer: True) -> M | None:
    """The first mixer of that kind, one that fits if there is any."""
    found = [part.mixer for block in stack.pattern for part in block.branches if isinstance(part.mixer, kind)]
    return next((mixer for mixer in found if fits(mixer)), found[0] if found else None)


def _attention(field: str) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(mixer_of(spec.output, Attention), field, None)


def _experts(field: str, otherwise: Any) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(mixer_of(spec.output, MixtureOfExperts), field, otherwise)


def _norm_eps(kind: str) -> Callable[[Transformer], Any]:
    def eps(spec: Transformer) -> float | None:
        norms = [part.norm for part in spec.output.pattern[-1].branches if isinstance(part.norm, Norm)]
        return norms[0].eps if norms and norms[0].kind == kind else None

    return eps


def position_of(spec: Transformer, windowed: bool = False) -> Any:
    attention = mixer_of(spec.output, Attention, lambda mixer: (mixer.window is not None) is windowed)
    return attention.position if attention is not None else None


def _position(field: str, windowed: bool = False) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(position_of(spec, windowed), field, None)


def turned_channels(spec: Transformer) -> int | None:
    position, attention = position_of(spec), mixer_of(spec.output, Attention)
    return position.dim or attention.head_dim if isinstance(position, Rotary) and attention is not None else None


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
        return 1.0 if scaling.attention_factor is None else scaling.attention_factor / yarn_factor(scaling.factor)
    if isinstance(scaling, LongRopeScaling):
        given = scaling.attention_factor
        return longrope_factor(scaling.factor, scaling.original_context) if given is None else given
    return None


def yarn_factor(factor: float) -> float:
    return 0.1 * log(max(factor, 1.0)) + 1


def longrope_factor(factor: float, original: int) -> float:
    return sqrt(1 + log(max(factor, 1.0)) / log(max(original, 2)))


def _window(spec: Transformer) -> int:
    """The number of keys that a query sees, itself included; where it looks both ways, without itself."""
    attention = mixer_of(spec.output, Attention, lambda mixer: mixer.window is not None)
    left, right = (attention.window if attention is not None else None) or (None, None)
    return (left or 0) if right is None else 2 * (right - 1)


def _windowed(spec: Transformer) -> list[bool] | None:
    """Which layers have a window, where not all of them do."""
    found = [any(mixer.window for mixer in _attentions(block)) for block in spec.output.layers()]
    return found if any(found) and not all(found) else None


def _attentions(block: Any) -> list[Attention]:
    return [part.mixer for part in block.branches if isinstance(part.mixer, Attention)]


def _hidden(spec: Transformer) -> int | None:
    mixer = mixer_of(spec.output, FeedForward) or mixer_of(spec.output, MixtureOfExperts)
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
    "expert_shared_count": Fact(Config.integer, lambda spec: 0, 0),
    "attention.head_count": Fact(Config.size, _attention("heads")),
    "attention.head_count_kv": Fact(Config.size, _attention("kv_heads")),
    "attention.key_length": Fact(Config.size, _attention("head_dim")),
    "attention.value_length": Fact(Config.size, _attention("head_dim")),
    "attention.layer_norm_epsilon": Fact(Config.number, _norm_eps("layer")),
    "attention.layer_norm_rms_epsilon": Fact(Config.number, _norm_eps("rms")),
    "attention.causal": Fact(Config.flag, lambda spec: _attention("visibility")(spec) == "causal", True),
    "attention.sliding_window": Fact(Config.integer, _window, 0),
    "attention.sliding_window_pattern": Fact(_stated, _windowed),
    "attention.max_alibi_bias": Fact(Config.number, _position("max_bias"), 0.0),
    "attention.relative_buckets_count": Fact(Config.size, lambda spec: getattr(spec.output.relative, "buckets", None)),
    "attn_logit_softcapping": Fact(Config.number, lambda spec: _soft_cap(mixer_of(spec.output, Attention)), 0.0),
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
    "pooling_type": Fact(Config.integer, lambda spec: POOLING.get(getattr(spec.head, "pooling", ""), 0), 0),
}

#: Keys that mean nothing at this value, and another model at any other.
DEFAULTS: dict[str, Any] = {
    "attention.clamp_kqv": 0.0,
    "expert_gating_func": 1,
    "expert_weights_norm": True,
    "expert_weights_scale": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
}

#: Keys that change nothing in what a model computes.
IGNORED = {
    "tensor_data_layout": "the names of the tensors say it",
    "rope.scaling.finetuned": "a note on the training",
    "decoder_start_token_id": "an id for generation to begin with",
}
