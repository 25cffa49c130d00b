"""Rotary positions in config.json, in the old form and the new."""

from __future__ import annotations

from math import log
from typing import Any

import pytest

from anyformer.errors import SpecError
from anyformer.families.config import Config
from anyformer.families.rotary import rotary, rotary_attributes
from anyformer.spec import DynamicScaling, LinearScaling, Llama3Scaling, LongRopeScaling, Rotary, YarnScaling

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALED = Rotary(base=5e5, scaling=Llama3Scaling(factor=8.0, low=1.0, high=4.0, original_context=8192))


def read(share: float | None = None, layer: str | None = None, **attributes: Any) -> Rotary:
    config = Config(attributes, "config.json")
    found = rotary(config, head_dim=64, context=2048, base=10000.0, share=share, layer=layer)
    config.finish({}, {})
    return found


@pytest.mark.parametrize(
    "attributes",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "llama3", **LLAMA3}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"type": "llama3", **LLAMA3},
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3},
        },
    ],
)
def test_every_form_says_the_same(attributes: dict[str, Any]) -> None:
    """Old, older, new, and both at once."""
    assert read(**attributes) == SCALED


@pytest.mark.parametrize(
    ("attributes", "base"),
    [
        ({}, 10000.0),
        ({"rope_theta": 7.0}, 7.0),
        ({"rope_theta": None, "rope_scaling": None, "rope_parameters": None}, 10000.0),
        ({"rope_parameters": {"rope_type": "default"}}, 10000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 9.0}}, 9.0),
        ({"rope_theta": 9, "rope_scaling": {}}, 9.0),
    ],
)
def test_unscaled(attributes: dict[str, Any], base: float) -> None:
    """Whatever says nothing of a scaling has none, and the family's base where none is given."""
    assert read(**attributes) == Rotary(base=base)


DIVISORS = {"short_factor": [1.0, 2], "long_factor": [3, 4.0]}
KINDS = [
    ({"type": "linear", "factor": 4}, LinearScaling(factor=4.0)),
    ({"type": "dynamic", "factor": 2.0}, DynamicScaling(factor=2.0, original_context=2048)),
    ({"type": "yarn", "factor": 4.0}, YarnScaling(factor=4.0, original_context=2048)),
    (
        {
            "type": "yarn",
            "factor": None,
            "original_max_position_embeddings": 512,
            "beta_fast": 20,
            "beta_slow": 2,
            "truncate": False,
            "attention_factor": 1.5,
        },
        YarnScaling(
            factor=4.0, original_context=512, beta_fast=20.0, beta_slow=2.0, truncate=False, attention_factor=1.5
        ),
    ),
    (
        {"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0},
        YarnScaling(factor=40.0, original_context=2048, attention_factor=1.0),
    ),
    (
        {"type": "longrope", "original_max_position_embeddings": 1024, **DIVISORS},
        LongRopeScaling(short=(1.0, 2.0), long=(3.0, 4.0), factor=2.0, original_context=1024),
    ),
    (
        {"type": "su", "original_max_position_embeddings": 1024, "factor": 8.0, "attention_factor": 1.2, **DIVISORS},
        LongRopeScaling(short=(1.0, 2.0), long=(3.0, 4.0), factor=8.0, original_context=1024, attention_factor=1.2),
    ),
]


@pytest.mark.parametrize(("said", "scaling"), KINDS)
def test_every_kind_is_read_and_written(said: dict[str, Any], scaling: Any) -> None:
    """In the old form and the new; what is written reads as the same."""
    assert read(rope_scaling=said) == read(rope_parameters=said) == Rotary(scaling=scaling)
    assert read(**rotary_attributes(Rotary(scaling=scaling))) == Rotary(scaling=scaling)


def test_the_factor_of_two_scales() -> None:
    """DeepSeek's pair of scales is transformers' ratio of the two, and one of them alone says nothing there."""
    wanted = (0.1 * 0.7 * log(40) + 1) / (0.1 * 1.3 * log(40) + 1)
    scaled = read(rope_scaling={"type": "yarn", "factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.3}).scaling
    assert isinstance(scaled, YarnScaling) and scaled.attention_factor == pytest.approx(wanted, rel=1e-12)
    alone = read(rope_scaling={"type": "yarn", "factor": 40.0, "mscale": 0.7}).scaling
    assert isinstance(alone, YarnScaling) and alone.attention_factor is None


def test_the_original_context_beside_the_scaling() -> None:
    """A family may have it outside of the scaling; the two must agree."""
    said = {"rope_scaling": {"type": "longrope", **DIVISORS}}
    found = rotary(Config(said, "config.json"), head_dim=4, context=2048, original=256).scaling
    assert isinstance(found, LongRopeScaling) and (found.original_context, found.factor) == (256, 8.0)
    twice = {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 512, **DIVISORS}}
    with pytest.raises(SpecError, match=r"rope_scaling.original_max_position_embeddings differ; remove one"):
        rotary(Config(twice, "config.json"), head_dim=4, context=2048, original=256)


def test_written_reads_back() -> None:
    """What is written, in the old form, reads as the same positions."""
    assert read(**rotary_attributes(SCALED)) == SCALED
    assert read(**rotary_attributes(Rotary(base=3.0))) == Rotary(base=3.0)


def test_the_original_length_defaults_to_the_context() -> None:
    """As in the reference, where llama3 scaling does not give it."""
    scaling = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    found = read(rope_scaling={"type": "llama3", **scaling}).scaling
    assert isinstance(found, Llama3Scaling) and found.original_context == 2048


def test_a_share_of_each_head() -> None:
    """Families in which only part of a head turns take it from either place."""
    assert read(share=0.25).dim == 16
    assert read(share=1.0).dim is None
    assert read(share=0.25, rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5}).dim == 32
    with pytest.raises(SpecError, match=r"partial_rotary_factor is 0.5; only 1.0 is understood"):
        read(rope_parameters={"rope_type": "default", "partial_rotary_factor": 0.5})


def test_kinds_of_layers_apart() -> None:
    """Layers of different kinds have parameters of their own, and each is accounted for."""
    nested = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = Config({"rope_parameters": nested}, "config.json")
    bases = [rotary(config, head_dim=8, context=64, layer=layer).base for layer in nested]
    config.finish({}, {})
    assert bases == [1e6, 1e4]
    config = Config({"rope_parameters": nested}, "config.json")
    rotary(config, head_dim=8, context=64, layer="full_attention")
    with pytest.raises(SpecError, match=r"'rope_parameters.sliding_attention'"):
        config.finish({}, {})


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"rope_scaling": {"type": "spiral", "factor": 2.0}}, "rope_type is 'spiral'; known kinds: default, linear"),
        ({"rope_scaling": {"type": "llama3", **LLAMA3, "twist": 1}}, "'rope_scaling.twist'"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "rope_scaling.low_freq_factor is missing"),
        (
            {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 2.0}},
            "rope_theta and rope_parameters.rope_theta differ",
        ),
        (
            {"rope_scaling": {"rope_theta": 1.0}, "rope_parameters": {"rope_theta": 2.0}},
            "rope_scaling and rope_parameters contradict each other",
        ),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {"type": "longrope", "short_factor": ["a"]}}, "short_factor is .*must be a list of numbers"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3.0}}, "'rope_scaling.beta_fast'"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 7}},
            "original_max_position_embeddings is 7; only 2048 is understood",
        ),
        ({"rope_scaling": "llama3"}, 'rope_scaling is "llama3"; it must be an object'),
    ],
)
def test_what_is_refused(attributes: dict[str, Any], message: str) -> None:
    """Unknown kinds and keys, missing keys and contradictions, each by name."""
    with pytest.raises(SpecError, match=message):
        read(**attributes)
