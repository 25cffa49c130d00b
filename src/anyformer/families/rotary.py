"""Rotary positions in a config.json, in both of the forms that are in use."""

from __future__ import annotations

from collections.abc import Callable
from math import log, nextafter
from typing import Any, NamedTuple

from anyformer.families.config import Config
from anyformer.spec import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, Rotary, YarnScaling


def rotary(
    config: Config,
    *,
    head_dim: int,
    context: int,
    base: float = 10000.0,
    share: float | None = None,
    layer: str | None = None,
    original: int | None = None,
    names: tuple[str, str] = ("rope_theta", "partial_rotary_factor"),
) -> Rotary:
    """Read `rope_theta` with `rope_scaling` (whose kind is called `rope_type` or `type`), or `rope_parameters`, which
    holds all of it, kinds of `layer` apart if need be.

    `base` is the family's default, `share` how much of each head turns (None: a family in which all of it does), and
    `original` the context before scaling, in a family that has it beside the scaling and not in it. `names` are what
    base and share are called outside of `rope_parameters`.
    """
    theta = config.number(names[0], default=None)
    outer = config.number(names[1], default=None) if share is not None else None
    forms = [name for name in ("rope_scaling", "rope_parameters") if config.attributes.get(name)]
    sections = [_section(config, name, layer) for name in forms]
    for section in sections:
        for outside, name, value in zip(names, ("rope_theta", "partial_rotary_factor"), (theta, outer)):
            inner = section.number(name, default=None)
            if inner is not None and value is not None and inner != value:
                section.refuse(f"{outside} and {section.path}{name} differ; remove one of them")
    share = share if outer is None else outer
    base = base if theta is None else theta
    read = [_read(section, head_dim, Contexts(context, original), base, share) for section in sections]
    config.taken |= {"rope_scaling", "rope_parameters"}
    if len(read) == 2 and read[0] != read[1]:
        config.refuse("rope_scaling and rope_parameters contradict each other; remove one of them")
    return read[0] if read else Rotary(base=base, dim=_turned(head_dim, share))


def rotary_attributes(position: Rotary) -> dict[str, Any]:
    """What `rotary` reads, in the older form, which every version of transformers understands."""
    scaling = None
    if position.scaling is not None:
        name = position.scaling.kind
        scaling = {"rope_type": name, **SCALINGS[name].write(position.scaling)}
    return {"rope_theta": position.base, "rope_scaling": scaling}


def rotary_share(position: Rotary, head_dim: int) -> float:
    """How much of each head turns, such that as many channels come out of it again."""
    share = (position.dim or head_dim) / head_dim
    return share if _turned(head_dim, share) in (None, position.dim) else nextafter(share, 1.0)


def _section(config: Config, name: str, layer: str | None) -> Config:
    section = config.section(name)
    return section.section(layer) if layer is not None and section.has(layer) else section


class Contexts(NamedTuple):
    """How long texts may be, and were before scaling where the config says so outside of the scaling."""

    now: int
    original: int | None

    def read(self, section: Config) -> int:
        """The context before scaling."""
        inner = section.size("original_max_position_embeddings", default=None)
        if inner is not None and self.original not in (None, inner):
            name = "original_max_position_embeddings"
            section.refuse(f"{name} and {section.path}{name} differ; remove one of them")
        return self.original or inner or self.now


def _read(section: Config, head_dim: int, contexts: Contexts, base: float, share: float | None) -> Rotary:
    base = section.number("rope_theta", default=base)
    if share is None:
        section.expect("partial_rotary_factor", 1.0)
    else:
        share = section.number("partial_rotary_factor", default=share)
    kind = section.text("rope_type", "type", default="default")
    # A note on the training, in the first files with YaRN.
    section.taken.add("finetuned")
    if kind == "default":
        return Rotary(base=base, dim=_turned(head_dim, share))
    kind = OLD_NAMES.get(kind, kind)
    if kind not in SCALINGS:
        section.refuse(f"{section.path}rope_type is {kind!r}; known kinds: default, {', '.join(SCALINGS)}")
    return Rotary(base=base, dim=_turned(head_dim, share), scaling=SCALINGS[kind].read(section, contexts))


def _turned(head_dim: int, share: float | None) -> int | None:
    return None if share in (None, 1.0) else int(head_dim * share)


class Scaling(NamedTuple):
    """How a kind of `rope_type` is read and written."""

    read: Callable[[Config, Contexts], Any]
    write: Callable[[Any], dict[str, Any]]


def _read_linear(section: Config, contexts: Contexts) -> LinearScaling:
    return LinearScaling(factor=section.number("factor"))


def _write_linear(scaling: LinearScaling) -> dict[str, Any]:
    return {"factor": scaling.factor}


def _read_dynamic(section: Config, contexts: Contexts) -> DynamicScaling:
    section.expect("original_max_position_embeddings", contexts.now)
    return DynamicScaling(factor=section.number("factor"), original_context=contexts.now)


def _write_dynamic(scaling: DynamicScaling) -> dict[str, Any]:
    return {"factor": scaling.factor}


def _read_yarn(section: Config, contexts: Contexts) -> YarnScaling:
    """`mscale` and `mscale_all_dim` count where both are given, and say the attention factor (DeepSeek-V2)."""
    original = contexts.read(section)
    factor = section.number("factor", default=contexts.now / original)
    attention_factor = section.number("attention_factor", default=None)
    above, below = section.number("mscale", default=None), section.number("mscale_all_dim", default=None)
    if attention_factor is None and above and below:
        grown = 0.1 * log(max(factor, 1.0))
        attention_factor = (above * grown + 1) / (below * grown + 1)
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=section.number("beta_fast", default=32.0),
        beta_slow=section.number("beta_slow", default=1.0),
        truncate=section.flag("truncate", default=True),
        attention_factor=attention_factor,
    )


def _write_yarn(scaling: YarnScaling) -> dict[str, Any]:
    return {
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        "beta_fast": scaling.beta_fast,
        "beta_slow": scaling.beta_slow,
        "truncate": scaling.truncate,
        **_attention_factor(scaling),
    }


def _read_longrope(section: Config, contexts: Contexts) -> LongRopeScaling:
    original = contexts.read(section)
    return LongRopeScaling(
        short=section.numbers("short_factor"),
        long=section.numbers("long_factor"),
        factor=section.number("factor", default=contexts.now / original),
        original_context=original,
        attention_factor=section.number("attention_factor", default=None),
    )


def _write_longrope(scaling: LongRopeScaling) -> dict[str, Any]:
    return {
        "short_factor": list(scaling.short),
        "long_factor": list(scaling.long),
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_context,
        **_attention_factor(scaling),
    }


def _attention_factor(scaling: YarnScaling | LongRopeScaling) -> dict[str, Any]:
    return {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}


def _read_llama3(section: Config, contexts: Contexts) -> Llama3Scaling:
    return Llama3Scaling(
        factor=section.number("factor"),
        low=section.number("low_freq_factor"),
        high=section.number("high_freq_factor"),
        original_context=contexts.read(section),
    )


def _write_llama3(scaling: Llama3Scaling) -> dict[str, Any]:
    return {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }


SCALINGS = {
    "linear": Scaling(_read_linear, _write_linear),
    "dynamic": Scaling(_read_dynamic, _write_dynamic),
    "yarn": Scaling(_read_yarn, _write_yarn),
    "longrope": Scaling(_read_longrope, _write_longrope),
    "llama3": Scaling(_read_llama3, _write_llama3),
}

#: What LongRoPE was called in the first files that had it.
OLD_NAMES = {"su": "longrope"}
