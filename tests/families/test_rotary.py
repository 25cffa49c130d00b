"""Rotary positions in config.json, in the old form and the new."""

from __future__ import annotations

from typing import Any

import pytest

from anyformer.errors import SpecError
from anyformer.families.config import Config
from anyformer.families.rotary import rotary, rotary_attributes
from anyformer.spec import Llama3Scaling, Rotary

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


def test_written_reads_back() -> None:
    """What is written, in the old form, reads as the same positions."""
    assert read(**rotary_attributes(SCALED)) == SCALED
    assert read(**rotary_attributes(Rotary(base=3.0))) == Rotary(base=3.0)


def test_the_original_length_defaults_to_the_context() -> None:
    """As in the reference, where llama3 scaling does not give it."""
    scaling = {name: value for name, value in LLAMA3.items() if name != "original_max_position_embeddings"}
    found = read(rope_scaling={"type": "llama3", **scaling}).scaling
    assert found is not None and found.original_context == 2048


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
        ({"rope_scaling": "llama3"}, 'rope_scaling is "llama3"; it must be an object'),
    ],
)
def test_what_is_refused(attributes: dict[str, Any], message: str) -> None:
    """Unknown kinds and keys, missing keys and contradictions, each by name."""
    with pytest.raises(SpecError, match=message):
        read(**attributes)
