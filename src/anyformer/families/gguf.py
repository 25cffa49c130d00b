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
from math import isclose, isfinite
from typing import Any, NamedTuple

from anyformer.errors import SpecError
from anyformer.families import registry
from anyformer.families.config import Config
from anyformer.families.difference import differences
from anyformer.families.family import Family, Gguf, GgufSource
from anyformer.families.gguf_facts import (
    DEFAULTS,
    FACTS,
    IGNORED,
    POOLING,
    llama3_divisors,
    longrope_factor,
    position_of,
    turned_channels,
    yarn_factor,
)
from anyformer.families.gguf_names import DIVISORS, LONG, SHORT
from anyformer.spec import EmbeddingHead, Llama3Scaling, LongRopeScaling, Transformer

#: Llama 3.1's context before scaling, for files that hold its divisors and no more.
LLAMA3_CONTEXT = 8192


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
    config.assume(decoder_block_count=config.size("block_count"))
    for name in ("block_count", "decoder_block_count"):
        # Before anything is spelled out layer by layer, for a file may announce any number of them.
        if config.size(name) > len(shapes):
            config.refuse(f"{own}{name} is {keys[name]}, but there are only {len(shapes)} tensors")
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
    for name in config.attributes.keys() & FACTS.keys() - gguf.ignored.keys():
        told = FACTS[name].of(spec)
        if told is not None and not _same(FACTS[name].read(config, name), told):
            config.expect(name, told)
    config.taken.update(FACTS)
    config.finish(DEFAULTS, {**IGNORED, **gguf.ignored})
    return family, spec


def _form(family: Family) -> Gguf:
    if family.gguf is None:
        raise SpecError(f"there is no GGUF architecture for {family.name} models; save them as directories")
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
    heads = config.size("attention.head_count")
    config.assume(**gguf.assumed)
    config.assume(**{"attention.head_count_kv": heads, "rope.freq_base": 10000.0})
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
        if not _same(attention_factor, longrope_factor(now / (original or now), original or now)):
            found["attention_factor"] = attention_factor
        kind = "longrope"
    elif kind == "yarn":
        found = {"factor": factor, **contexts}
        found["beta_fast"] = config.number("rope.scaling.yarn_beta_fast", default=32.0)
        found["beta_slow"] = config.number("rope.scaling.yarn_beta_slow", default=1.0)
        found |= gguf.yarn
        if multiplier := config.number("rope.scaling.yarn_log_multiplier", default=0.0):
            config.expect("rope.scaling.attn_factor", 1.0)
            found |= dict.fromkeys(("mscale", "mscale_all_dim"), multiplier / 0.1)
        elif attention_factor != 1.0:
            found["attention_factor"] = attention_factor * yarn_factor(factor)
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
    expected = llama3_divisors(scaling, base, len(divisors)) if sound else []
    if not sound or not all(isclose(one, other, rel_tol=1e-4) for one, other in zip(divisors, expected)):
        source.metadata.refuse(f"{DIVISORS} does not hold the divisors of Llama 3.1's rotary scaling")
    return {
        "factor": scaling.factor,
        "low_freq_factor": scaling.low,
        "high_freq_factor": scaling.high,
        "original_max_position_embeddings": original,
    }


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
    position, scaling = position_of(spec), getattr(position_of(spec), "scaling", None)
    small = {}
    if isinstance(scaling, Llama3Scaling):
        small[DIVISORS] = llama3_divisors(scaling, position.base, (turned_channels(spec) or 0) // 2)
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
