"""GGUF files in the terms of a spec: what each metadata key says of it, read and written by one table, and the names
of the tensors.

    llama.attention.head_count = 9    --family's pairs-->    num_attention_heads = 9    --family.read-->    spec
                  spec                --FACTS-->             llama.attention.head_count = 9

A file is read by its family's pairs, and then every key of it is held against the spec that came out. So no key is
dropped in silence, and a family lists only what its config has an attribute for.

Source: the GGUF specification of the ggml project (docs/gguf.md), and llama.cpp for what it leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isclose, isfinite, log, pi, sqrt
from typing import Any, NamedTuple, TypeVar

from anyformer.errors import SpecError
from anyformer.families import registry
from anyformer.families.config import Config
from anyformer.families.difference import differences
from anyformer.families.family import Family, Gguf, GgufSource
from anyformer.families.layer_types import GLOBAL, LOCAL
from anyformer.families.names import PairedRows, Table, Tensor, Unused
from anyformer.families.rotary import rotary_share
from anyformer.spec import (
    Attention,
    EmbeddingHead,
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
#: The tensors of rotary scalings that have a divisor for each pair of channels.
DIVISORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
#: Llama 3.1's context before scaling, for files that hold its divisors and no more.
LLAMA3_CONTEXT = 8192

#: The attributes that most configs have a metadata key for, and those in the line of LLaMA.
SHAPE = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
DECODER = {
    **SHAPE,
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
WINDOW = {"sliding_window": "attention.sliding_window"}


class Fact(NamedTuple):
    """What a metadata key says: how `Config` reads it, what it is for a spec (None: it says nothing about such a spec),
    and what its absence means (None: nothing)."""

    read: Callable[..., Any]
    of: Callable[[Transformer], Any]
    absent: Any = None


def _mixer(stack: Stack, kind: type[M], fits: Callable[[M], bool] = lambda mixer: True) -> M | None:
    """The first mixer of that kind, one that fits if there is any."""
    found = [part.mixer for block in stack.pattern for part in block.branches if isinstance(part.mixer, kind)]
    return next((mixer for mixer in found if fits(mixer)), found[0] if found else None)


def _attention(field: str) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(_mixer(spec.output, Attention), field, None)


def _experts(field: str, otherwise: Any) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(_mixer(spec.output, MixtureOfExperts), field, otherwise)


def _norm_eps(kind: str) -> Callable[[Transformer], Any]:
    def eps(spec: Transformer) -> float | None:
        norms = [part.norm for part in spec.output.pattern[-1].branches if isinstance(part.norm, Norm)]
        return norms[0].eps if norms and norms[0].kind == kind else None

    return eps


def _position(spec: Transformer, windowed: bool = False) -> Any:
    attention = _mixer(spec.output, Attention, lambda mixer: (mixer.window is not None) is windowed)
    return attention.position if attention is not None else None


def _positions(field: str, windowed: bool = False) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(_position(spec, windowed), field, None)


def _turned(spec: Transformer) -> int | None:
    position, attention = _position(spec), _mixer(spec.output, Attention)
    return position.dim or attention.head_dim if isinstance(position, Rotary) and attention is not None else None


def _scaling(field: str) -> Callable[[Transformer], Any]:
    return lambda spec: getattr(getattr(_position(spec), "scaling", None), field, None)


def _scaling_type(spec: Transformer) -> str | None:
    # Llama 3's has no name there: its divisors are a tensor.
    kind = _scaling("kind")(spec)
    return None if not isinstance(_position(spec), Rotary) else "none" if kind in (None, "llama3") else kind


def _scaling_factor(spec: Transformer) -> float | None:
    return _scaling("factor")(spec) if _scaling_type(spec) in ("linear", "yarn") else None


def _attention_factor(spec: Transformer) -> float | None:
    """What multiplies cos and sin: for YaRN beyond the paper's own factor, which its readers compute."""
    scaling = _scaling("kind")(spec) and getattr(_position(spec), "scaling", None)
    if isinstance(scaling, YarnScaling):
        return 1.0 if scaling.attention_factor is None else scaling.attention_factor / _yarn_factor(scaling.factor)
    if isinstance(scaling, LongRopeScaling):
        given = scaling.attention_factor
        return _longrope_factor(scaling.factor, scaling.original_context) if given is None else given
    return None


def _yarn_factor(factor: float) -> float:
    return 0.1 * log(max(factor, 1.0)) + 1


def _longrope_factor(factor: float, original: int) -> float:
    return sqrt(1 + log(max(factor, 1.0)) / log(max(original, 2)))


def _window(spec: Transformer) -> int:
    """The number of keys that a query sees, itself included; where it looks both ways, without itself."""
    attention = _mixer(spec.output, Attention, lambda mixer: mixer.window is not None)
    left, right = (attention.window if attention is not None else None) or (None, None)
    return (left or 0) if right is None else 2 * (right - 1)


def _windowed(spec: Transformer) -> list[bool] | None:
    """Which layers have a window, where not all of them do."""
    found = [any(mixer.window for mixer in _attentions(block)) for block in spec.output.layers()]
    return found if any(found) and not all(found) else None


def _attentions(block: Any) -> list[Attention]:
    return [part.mixer for part in block.branches if isinstance(part.mixer, Attention)]


def _hidden(spec: Transformer) -> int | None:
    mixer = _mixer(spec.output, FeedForward) or _mixer(spec.output, MixtureOfExperts)
    return mixer.hidden if mixer is not None else None


def _soft_cap(part: Any) -> float:
    return getattr(part, "soft_cap", None) or 0.0


def _first(spec: Transformer) -> Stack:
    return next(iter(spec.stacks().values()))


def _decoder_depth(spec: Transformer) -> int | None:
    return spec.decoder.depth if spec.encoder is not None and spec.decoder is not None else None


def _stated(config: Config, *names: str, default: Any = None) -> Any:
    return config.value(*names, default=default)


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
    "attention.max_alibi_bias": Fact(Config.number, _positions("max_bias"), 0.0),
    "attention.relative_buckets_count": Fact(Config.size, lambda spec: getattr(spec.output.relative, "buckets", None)),
    "attn_logit_softcapping": Fact(Config.number, lambda spec: _soft_cap(_mixer(spec.output, Attention)), 0.0),
    "final_logit_softcapping": Fact(Config.number, lambda spec: _soft_cap(spec.head), 0.0),
    "rope.dimension_count": Fact(Config.size, _turned),
    "rope.freq_base": Fact(Config.number, _positions("base")),
    "rope.freq_base_swa": Fact(Config.number, lambda spec: _windowed(spec) and _positions("base", windowed=True)(spec)),
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


def read(
    metadata: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    values: Callable[[str], list[float]],
    where: str,
    ignore: Iterable[str] = (),
) -> tuple[Family, Transformer]:
    """The family and spec of a file: from its whole metadata, the shapes of its tensors (rows first), and the values of
    a small one. Keys named in `ignore` count as absent.

    Raises `SpecError` naming the architecture or key that is unknown, missing or unfit.
    """
    architecture = str(metadata.get("general.architecture"))
    family = registry.of_gguf(architecture, metadata, where)
    gguf, own, ignore = _form(family), f"{architecture}.", set(ignore)
    keys = {name: value for name, value in metadata.items() if name.startswith(own) and name not in ignore}
    keys = {name.removeprefix(own): value for name, value in keys.items()}
    config = Config(keys, where, path=own)
    if config.size("block_count") > len(shapes):
        # Before anything is spelled out layer by layer, for a file may announce any number of them.
        config.refuse(f"{own}block_count is {keys['block_count']}, but there are only {len(shapes)} tensors")
    attributes = _attributes(gguf, GgufSource(config, shapes, values))
    pooling = {number: name for name, number in POOLING.items()}
    pooled = config.integer("pooling_type", default=0)
    if pooled and pooled not in pooling:
        config.refuse(f"{own}pooling_type is {pooled}; known are 0 and {', '.join(map(str, pooling))}")
    bare = bool(pooled) or architecture == gguf.encoder or "language_model" not in family.architectures.values()
    kind = "embedding" if bare else "language_model"
    names = [name for name, head in family.architectures.items() if head == kind]
    spec = family.parse({**attributes, "architectures": names[:1]}, where=where)[0]
    if pooled:
        spec = spec.replace(head=EmbeddingHead().replace(pooling=pooling[pooled]))
    for name in keys.keys() & FACTS.keys() - gguf.ignored.keys():
        told = FACTS[name].of(spec)
        if told is not None and not _same(FACTS[name].read(config, name), told):
            config.expect(name, told)
    config.taken.update(FACTS)
    config.finish(DEFAULTS, {**IGNORED, **gguf.ignored})
    return family, spec


def _form(family: Family) -> Gguf:
    if family.gguf is None:
        raise SpecError(f"there is no GGUF architecture for {family.name} models")
    return family.gguf


def _same(first: Any, second: Any) -> bool:
    """Whether two values are one, as single precision has it, which is all that a file keeps."""
    if isinstance(first, float) and isinstance(second, float):
        return isclose(first, second, rel_tol=1e-6)
    return first == second


def _attributes(gguf: Gguf, source: GgufSource) -> dict[str, Any]:
    """The attributes of config.json that a file's metadata amount to."""
    config, shapes = source.metadata, source.shapes
    if "token_embd.weight" not in shapes:
        config.refuse("there is no tensor token_embd.weight, so it is no language model")
    heads, depth = config.size("attention.head_count"), config.size("block_count")
    config.assume(**gguf.assumed)
    config.assume(**{"attention.head_count_kv": heads, "rope.freq_base": 10000.0, "decoder_block_count": depth})
    if not config.has("attention.key_length"):
        config.assume(**{"attention.key_length": config.size("embedding_length") // heads})
    attributes: dict[str, Any] = {
        "vocab_size": shapes["token_embd.weight"][0],
        "tie_word_embeddings": "output.weight" not in shapes,
        **{name: tensor in shapes for name, tensor in gguf.present.items()},
        **gguf.fixed,
    }
    for name, key in gguf.keys.items():
        fact = FACTS[key]
        value = fact.read(config, key) if fact.absent is None else fact.read(config, key, default=fact.absent)
        # Nought stands for what is not there: no window, no soft cap.
        attributes[name] = None if value == 0 and value is not False else value
    if (scaling := _read_scaling(gguf, source)) is not None:
        attributes["rope_scaling"] = scaling
    return {**attributes, **gguf.read(source)}


def _read_scaling(gguf: Gguf, source: GgufSource) -> dict[str, Any] | None:
    config = source.metadata
    factor = config.number("rope.scaling.factor", "rope.scale_linear", default=1.0) or 1.0
    kind = config.text("rope.scaling.type", default="none" if factor == 1.0 else "linear")
    original = config.size("rope.scaling.original_context_length", default=None)
    attention_factor = config.number("rope.scaling.attn_factor", default=1.0)
    contexts = {} if original is None else {"original_max_position_embeddings": original}
    if DIVISORS in source.shapes:
        kind, found = "llama3", _read_llama3(source, original or LLAMA3_CONTEXT)
    elif LONG in source.shapes and SHORT in source.shapes:
        now = config.size("context_length")
        found = {"short_factor": source.values(SHORT), "long_factor": source.values(LONG), **contexts}
        if not _same(attention_factor, _longrope_factor(now / (original or now), original or now)):
            found["attention_factor"] = attention_factor
        kind = "longrope"
    elif kind == "yarn":
        found = {"factor": factor, **contexts}
        found["beta_fast"] = config.number("rope.scaling.yarn_beta_fast", default=32.0)
        found["beta_slow"] = config.number("rope.scaling.yarn_beta_slow", default=1.0)
        if attention_factor != 1.0:
            found["attention_factor"] = attention_factor * _yarn_factor(factor)
    elif kind == "linear":
        found = {"factor": factor}
    elif kind == "none":
        return None
    else:
        config.refuse(f"{config.path}rope.scaling.type is {kind!r}, of which the file does not say enough")
    if kind not in gguf.scalings:
        known = ", ".join(gguf.scalings) or "none at all"
        config.refuse(f"{gguf.architecture} files have no rotary scaling of the kind {kind}; they have {known}")
    return {"rope_type": kind, **found}


def _read_llama3(source: GgufSource, original: int) -> dict[str, Any]:
    """Llama 3.1's scaling from its divisors of the rotary frequencies, one for each pair of channels."""
    divisors, base = source.values(DIVISORS), source.metadata.number("rope.freq_base")
    sound = base > 0 and all(isfinite(divisor) and divisor >= 1 for divisor in divisors)
    scaling = Llama3Scaling(factor=round(max(divisors), 3) if sound else 1.0, original_context=original)
    expected = _llama3_divisors(scaling, base, len(divisors)) if sound else []
    if not sound or not all(isclose(one, other, rel_tol=1e-4) for one, other in zip(divisors, expected)):
        source.metadata.refuse(f"{DIVISORS} does not hold the divisors of Llama 3.1's rotary scaling")
    return {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": original,
    }


def _llama3_divisors(scaling: Llama3Scaling, base: float, pairs: int) -> list[float]:
    turns = [scaling.original_context / (2 * pi * base ** (index / pairs)) for index in range(pairs)]
    ramps = [min(1.0, max(0.0, (turn - scaling.low) / (scaling.high - scaling.low))) for turn in turns]
    return [1 / ((1 - ramp) / scaling.factor + ramp) for ramp in ramps]


class Written(NamedTuple):
    """What a GGUF file says of a spec: its metadata, and small tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, list[float]]


def write(family: Family, spec: Transformer) -> Written:
    """What `read` reads. Whoever writes it must `check` that nothing is lost.

    Raises `SpecError` if the family has no GGUF architecture.
    """
    gguf = _form(family)
    told = {key: fact.of(spec) for key, fact in FACTS.items()}
    # What its absence says too is left out, but for a flag that the family asks for.
    flags = {key for key in gguf.keys.values() if told[key] is False}
    said = {key: value for key, value in told.items() if key in flags or value not in (None, FACTS[key].absent)}
    architecture = gguf.encoder if gguf.encoder and spec.decoder is None else gguf.architecture
    own = {f"{architecture}.{key}": value for key, value in said.items()}
    own |= {_whole(architecture, key): value for key, value in gguf.write(spec).items()}
    position, scaling = _position(spec), getattr(_position(spec), "scaling", None)
    small = {}
    if isinstance(scaling, Llama3Scaling):
        small[DIVISORS] = _llama3_divisors(scaling, position.base, (_turned(spec) or 0) // 2)
    if isinstance(scaling, LongRopeScaling):
        small = {LONG: list(scaling.long), SHORT: list(scaling.short)}
    return Written({"general.architecture": architecture, **own}, small)


def _whole(architecture: str, key: str) -> str:
    return key if key.startswith("tokenizer.") else f"{architecture}.{key}"


def check(spec: Transformer, again: Transformer) -> None:
    """Raise `SpecError` naming what a file does not keep of a spec: `again` is what is read from it."""
    lost = differences(spec, again, guidance=False)
    if lost := [difference for difference in lost if not _same(difference.first, difference.second)]:
        listed = "; ".join(str(difference) for difference in lost[:5])
        raise SpecError(f"GGUF files have no counterpart for {listed}")


def layer_types(every: int, *, last: bool = True) -> Callable[[GgufSource], dict[str, Any]]:
    """Reads which layers have a window: a flag for each, or a number n, `every` where the file is silent: the `last`
    layer of n has none, or the first."""

    def read(source: GgufSource) -> dict[str, Any]:
        config, depth = source.metadata, source.metadata.size("block_count")
        name = "attention.sliding_window_pattern"
        said = config.value(name, default=every)
        if type(said) is int and said >= 0:
            spared = said - 1 if last else 0
            said = [said == 0 or index % said != spared for index in range(depth)]
        if not isinstance(said, list) or len(said) != depth or not all(type(flag) is bool for flag in said):
            config.refuse(f"{config.path}{name} must be a number, or true or false for each of {depth} layers")
        windowed = config.integer("attention.sliding_window", default=0) > 0
        return {"layer_types": [LOCAL if flag and windowed else GLOBAL for flag in said]}

    return read


def turned(attribute: str) -> Callable[[GgufSource], dict[str, Any]]:
    """Reads how much of each head turns, which a config says as a share under this name."""

    def read(source: GgufSource) -> dict[str, Any]:
        width = source.metadata.size("attention.key_length")
        channels = source.metadata.size("rope.dimension_count", default=width)
        return {attribute: rotary_share(Rotary(dim=channels), width)}

    return read


@dataclass(frozen=True)
class PlusOne:
    """The file keeps 1 + w of a norm whose weight is w."""

    def to_ours(self, tensor: Any) -> Any:
        return tensor - 1

    def to_saved(self, tensor: Any) -> Any:
        return tensor.float() + 1  # before the type of the file, which would round 1 + w


_NAMES = {
    "token_embd.weight": "embeddings.tokens.weight",
    "position_embd.weight": "embeddings.positions.weight",
    "token_types.weight": "embeddings.segments.weight",
    "token_embd_norm.*": "embeddings.norm.*",
    "blk.*.attn_norm.*": "layers.*.attention_norm.*",
    "blk.*.attn_q.*": "layers.*.attention.query.*",
    "blk.*.attn_k.*": "layers.*.attention.key.*",
    "blk.*.attn_v.*": "layers.*.attention.value.*",
    "blk.*.attn_output.*": "layers.*.attention.output.*",
    "blk.*.attn_q_norm.weight": "layers.*.attention.query_norm.weight",
    "blk.*.attn_k_norm.weight": "layers.*.attention.key_norm.weight",
    "blk.*.ffn_norm.*": "layers.*.feed_forward_norm.*",
    "blk.*.ffn_gate.*": "layers.*.feed_forward.gate.*",
    "blk.*.ffn_up.*": "layers.*.feed_forward.up.*",
    "blk.*.ffn_down.*": "layers.*.feed_forward.down.*",
    "output_norm.*": "norm.*",
}
#: Those of layers with experts, whose matrices stand in one tensor.
EXPERTS = {
    "blk.*.ffn_norm.*": "layers.*.experts_norm.*",
    "blk.*.ffn_gate_inp.weight": "layers.*.experts.router.weight",
    "blk.*.ffn_gate_exps.weight": "layers.*.experts.gate",
    "blk.*.ffn_up_exps.weight": "layers.*.experts.up",
    "blk.*.ffn_down_exps.weight": "layers.*.experts.down",
}
#: Projections that stand in one tensor.
QKV = {"blk.*.attn_qkv.*": tuple(f"layers.*.attention.{name}.*" for name in ("query", "key", "value"))}
GATE_UP = {"blk.*.ffn_up.*": tuple(f"layers.*.feed_forward.{name}.*" for name in ("gate", "up"))}

_SCALING = tuple(Unused(name, "rotary scaling, read into the spec") for name in (DIVISORS, LONG, SHORT))


def tensors(*own: Mapping[str, str | tuple[str, ...]], paired: bool = False) -> Callable[[Transformer], Table]:
    """The table of a family whose files have the usual names, but for its `own`, which stand first. `paired`: queries
    and keys lie in llama.cpp's own order, in which channels that turn together are neighbours."""
    names = [line for table in (*own, _NAMES) for line in table.items()]

    def table(spec: Transformer) -> Table:
        stack = "encoder" if spec.decoder is None else "decoder"
        attention, norm = _mixer(spec.output, Attention), spec.output.norm
        layouts = {}
        if paired and attention is not None:
            layouts = {"query.*": (PairedRows(attention.heads),), "key.*": (PairedRows(attention.kv_heads),)}
        if norm is not None and norm.unit_offset:
            layouts |= {"norm.weight": (PlusOne(),), "norm.*": (PlusOne(),)}
        lines = []
        for saved, ours in names:
            parts = [f"{stack}.{name}" for name in ((ours,) if isinstance(ours, str) else ours)]
            layout = next((layouts[end] for end in layouts if isinstance(ours, str) and ours.endswith(end)), ())
            lines.append(Tensor(saved, parts[0] if len(parts) == 1 else tuple(parts), layout))
        return (*lines, Tensor("output.weight", "head.output.weight"), *_SCALING)

    return table
