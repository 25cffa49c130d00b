"""Odd random models of every architecture that GGUF has: all that its files can say, switched on at random."""

from __future__ import annotations

import random
from functools import cache

import torch
from odd import apply, changes
from torch import Tensor

from anyformer import families
from anyformer.checkpoints.gguf_writing import expressed_by
from anyformer.errors import SpecError
from anyformer.families import Family
from anyformer.planning.shapes import shapes
from anyformer.spec import Transformer

#: LongRoPE as files can say it: with the factor that follows from the two contexts, here 512 and 2. Every text is
#: longer than the second, for llama.cpp takes the divisors of long texts wherever its context has room for one.
LONGROPE = {"kind": "longrope", "factor": 256.0, "original_context": 2}
#: What a file can say of latent attention: YaRN that leaves cos and sin as they are, and queries without latent rows.
YARN = {"kind": "yarn", "factor": 4.0, "original_context": 16, "beta_fast": 4.0, "attention_factor": 1.0}
LATENT = (
    {"latent_attention": {"position": lambda attention: {**attention["position"], "scaling": YARN}, "mscale": 0.7}},
    {"latent_attention": {"query_latent": None}},
)


def with_gguf() -> list[str]:
    """The families that have a GGUF architecture."""
    return [name for name, family in families.registered().items() if family.gguf is not None]


def head_of(family: Family) -> str:
    """The class name of the head that the family's GGUF files have."""
    kinds = {kind: name for name, kind in reversed([*family.architectures.items()])}
    return kinds.get("language_model") or kinds["embedding"]


@cache
def odd_gguf_spec(name: str, seed: int) -> Transformer:
    """A small random spec that a GGUF file of the family's architecture can express."""
    family = families.named(name)
    chance = random.Random(seed)
    spec = family("tiny", architectures=[head_of(family)])
    for change in (*changes(chance, seed), *(LATENT if seed % 2 == 0 else ())):
        scaling = change.get("rotary", {}).get("scaling")
        if isinstance(scaling, dict) and scaling["kind"] == "longrope":
            change = {"rotary": {"scaling": {**scaling, **LONGROPE}}, "transformer": {"context": 512}}
        try:
            changed = Transformer.from_data(apply(spec.model_dump(), change))
            if changed != spec:
                expressed_by(family, changed)
        except SpecError:
            continue
        spec = changed
    return spec


def numbers(spec: Transformer, seed: int = 0) -> dict[str, Tensor]:
    """Every parameter at random, small enough for scores that differ and norms that stay near one."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.randn(shape, generator=generator) for name, shape in shapes(spec).items()}
    return {
        name: 0.3 * tensor / tensor.shape[-1] ** 0.25 + ("norm.weight" in name and not _offset(spec))
        for name, tensor in drawn.items()
    }


def _offset(spec: Transformer) -> bool:
    return spec.output.norm is not None and spec.output.norm.unit_offset
