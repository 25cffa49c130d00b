"""Rotary positions in a config.json, in both of the forms that are in use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from anyformer.families.config import Config
from anyformer.spec import Llama3Scaling, Rotary


def rotary(
    config: Config,
    *,
    head_dim: int,
    context: int,
    base: float = 10000.0,
    share: float | None = None,
    layer: str | None = None,
) -> Rotary:
    """Read `rope_theta` with `rope_scaling` (whose kind is called `rope_type` or `type`), or `rope_parameters`, which
    holds all of it, kinds of `layer` apart if need be.

    `base` is the family's default, and `share` how much of each head turns (None: a family in which all of it does).
    """
    theta = config.number("rope_theta", default=None)
    forms = [name for name in ("rope_scaling", "rope_parameters") if config.attributes.get(name)]
    read = [_read(_section(config, name, layer), theta, head_dim, context, base, share) for name in forms]
    config.taken |= {"rope_scaling", "rope_parameters"}
    if len(read) == 2 and read[0] != read[1]:
        config.refuse("rope_scaling and rope_parameters contradict each other; remove one of them")
    return read[0] if read else Rotary(base=base if theta is None else theta, dim=_turned(head_dim, share))


def rotary_attributes(position: Rotary) -> dict[str, Any]:
    """What `rotary` reads, in the older form, which every version of transformers understands."""
    scaling = None
    if position.scaling is not None:
        name = position.scaling.kind
        scaling = {"rope_type": name, **SCALINGS[name].write(position.scaling)}
    return {"rope_theta": position.base, "rope_scaling": scaling}


def _section(config: Config, name: str, layer: str | None) -> Config:
    section = config.section(name)
    return section.section(layer) if layer is not None and section.has(layer) else section


def _read(
    section: Config, theta: float | None, head_dim: int, context: int, base: float, share: float | None
) -> Rotary:
    inner = section.number("rope_theta", default=None)
    if inner is not None and theta is not None and inner != theta:
        section.refuse(f"rope_theta and {section.path}rope_theta differ; remove one of them")
    chosen = next(value for value in (inner, theta, base) if value is not None)
    if share is None:
        section.expect("partial_rotary_factor", 1.0)
    else:
        share = section.number("partial_rotary_factor", default=share)
    kind = section.text("rope_type", "type", default="default")
    if kind == "default":
        return Rotary(base=chosen, dim=_turned(head_dim, share))
    if kind not in SCALINGS:
        section.refuse(f"{section.path}rope_type is {kind!r}; known kinds: default, {', '.join(SCALINGS)}")
    return Rotary(base=chosen, dim=_turned(head_dim, share), scaling=SCALINGS[kind].read(section, context))


def _turned(head_dim: int, share: float | None) -> int | None:
    return None if share in (None, 1.0) else int(head_dim * share)


class Scaling(NamedTuple):
    """How a kind of `rope_type` is read and written."""

    read: Callable[[Config, int], Any]
    write: Callable[[Any], dict[str, Any]]


def _read_llama3(section: Config, context: int) -> Llama3Scaling:
    return Llama3Scaling(
        factor=section.number("factor"),
        low=section.number("low_freq_factor"),
        high=section.number("high_freq_factor"),
        original_context=section.size("original_max_position_embeddings", default=context),
    )


def _write_llama3(scaling: Llama3Scaling) -> dict[str, Any]:
    return {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": scaling.original_context,
    }


SCALINGS = {"llama3": Scaling(_read_llama3, _write_llama3)}
