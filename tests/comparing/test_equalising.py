"""Models held equal: within the tolerance for every part, by the smallest change that does it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import families
from anyformer.comparing.equalising import TOLERANCE, equalised, measure_of, narrowed, training_flops
from anyformer.comparing.swapping import swapped
from anyformer.comparing.sweeping import of_size
from anyformer.errors import ExperimentError
from anyformer.planning import count, forward_flops
from anyformer.spec import Transformer

LENGTH = 64
SWAPPED: list[tuple[str, Any]] = [
    ("position", "learned"),
    ("position", "relative"),
    ("kv_heads", 1),
    ("window", 8),
    ("feed_forward", "relu"),
    ("feed_forward", "swiglu"),
    ("experts", 8),
    ("placement", "both"),
    ("norm", "layernorm"),
    ("depth", 1),
    ("depth", 5),
]


def preset(name: str) -> Transformer:
    found = families.preset(name)
    assert found is not None
    return found


@pytest.mark.parametrize("equal", ["parameters", "flops"])
@pytest.mark.parametrize(("name", "value"), SWAPPED)
@pytest.mark.parametrize("model", ["llama:tiny", "t5:tiny"])
def test_every_part_is_held_equal_within_a_hundredth(model: str, name: str, value: Any, equal: str) -> None:
    """Parameters, or FLOPs, are the base's; what was swapped stays swapped."""
    base = preset(model)
    found, adjusted = equalised(swapped(base, name, value, LENGTH), base, equal, LENGTH)
    measure = measure_of(equal, LENGTH)
    assert abs(measure(found) / measure(base) - 1) <= TOLERANCE
    assert swapped(found, name, value, LENGTH) == found
    assert bool(adjusted) == (found != swapped(base, name, value, LENGTH))


def test_the_feed_forward_gives_way_first() -> None:
    """A gate makes three matrices of two: they become two thirds as wide, and nothing else changes."""
    base = swapped(preset("llama:tiny"), "feed_forward", "gelu", LENGTH)
    found, adjusted = equalised(swapped(base, "feed_forward", "geglu", LENGTH), base, "parameters", LENGTH)
    hidden: Any = found.output.pattern[0].branches[1].mixer
    assert hidden.hidden == pytest.approx(352 * 2 / 3, rel=0.05) and "feed-forward 352 →" in adjusted
    assert found.output.dim == base.output.dim


def test_a_deeper_model_becomes_narrower() -> None:
    """A feed-forward would have to vanish: the whole model gives way instead."""
    base = preset("llama:tiny")
    found, adjusted = equalised(swapped(base, "depth", 8, LENGTH), base, "parameters", LENGTH)
    assert found.output.dim < base.output.dim and "128 wide" in adjusted


def test_what_cannot_be_equal_is_refused() -> None:
    """A table of a million positions is more than the whole model, however narrow."""
    base = preset("llama:tiny")
    with pytest.raises(ExperimentError, match="no width gives it the 434,816 parameters of the base"):
        equalised(swapped(base, "position", "learned", 1_000_000), base, "parameters", LENGTH)


def test_flops_of_training_are_three_times_the_forward_pass() -> None:
    """Forward, and twice that backward."""
    spec = preset("llama:tiny")
    assert training_flops(spec, LENGTH) == 3 * sum(forward_flops(spec, LENGTH).values()) // LENGTH


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["llama:tiny", "t5:tiny", "original:tiny", "qwen3_moe:tiny"]), st.floats(0.3, 20))
def test_any_size_can_be_had(model: str, factor: float) -> None:
    """A ladder's sizes are within a hundredth of what is wanted, and every one is a spec that can be read back."""
    base = preset(model)
    found = of_size(base, factor * count(base))
    assert abs(count(found) / (factor * count(base)) - 1) <= TOLERANCE
    assert Transformer.from_json(found.to_json()) == found


def test_a_size_below_any_is_refused() -> None:
    """Ten parameters make no model, and the sentence says what to do."""
    assert narrowed(preset("llama:tiny"), count, 10) is None
    with pytest.raises(ExperimentError, match="no width of this architecture has 10 parameters"):
        of_size(preset("llama:tiny"), 10)
