"""Parts swapped by name: each does what it says, in every stack, and makes a model that computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anyformer import families
from anyformer.comparing.swapping import FEED_FORWARDS, PLACEMENTS, POSITIONS, SWAPS, swapped
from anyformer.errors import ExperimentError
from anyformer.model import build
from anyformer.planning import count
from anyformer.spec import Transformer

VALUES: dict[str, list[Any]] = {
    "position": list(POSITIONS),
    "heads": [2],
    "kv_heads": [1],
    "window": [3, "none"],
    "feed_forward": list(FEED_FORWARDS),
    "hidden": [40],
    "experts": [4, 1],
    "placement": list(PLACEMENTS),
    "norm": ["layernorm", "rmsnorm"],
    "depth": [1],
}
EVERY = [(name, value) for name, values in VALUES.items() for value in values]


def preset(name: str) -> Transformer:
    found = families.preset(name)
    assert found is not None
    return found


def test_every_part_is_tried_here() -> None:
    """A part that is added is added here; `top_k` belongs to mixtures, and has a test of its own."""
    assert {*VALUES, "top_k"} == {*SWAPS}


@pytest.mark.parametrize(("name", "value"), EVERY)
def test_a_swapped_part_makes_a_model_that_computes(name: str, value: Any) -> None:
    """The model of the swapped spec is built, has as many parameters as planned, and gives finite logits."""
    spec = swapped(preset("llama:tiny"), name, value, 16)
    model = build(spec, seed=0)
    assert sum(parameter.numel() for parameter in model.parameters()) == count(spec)
    assert torch.isfinite(model(torch.arange(12)[None]).logits).all()


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("model", ["llama:tiny", "bert:tiny", "t5:tiny", "original:tiny"])
def test_positions_are_of_one_kind_alone(model: str, kind: str) -> None:
    """Whatever a model had, it has those positions now and no others, and to ask again changes nothing."""
    spec = swapped(preset(model), "position", kind, 16)
    for stack in spec.stacks().values():
        found = {mixer.position.kind for mixer in stack.attentions() if mixer.position is not None}
        found |= {stack.embeddings.position.kind} if stack.embeddings.position is not None else set()
        found |= {"relative"} if stack.relative is not None else set()
        assert found == ({kind} - {"none"})
        if stack.relative is not None:
            both_ways = {mixer.visibility == "full" for mixer in stack.attentions() if mixer.source == "self"}
            assert both_ways == {stack.relative.bidirectional}
    assert swapped(spec, "position", kind, 16) == spec


def test_a_window_looks_to_both_sides_where_attention_does() -> None:
    """A causal window is open to the right, where nothing is seen anyway."""
    causal, full = (swapped(preset(name), "window", 3, 16) for name in ("llama:tiny", "bert:tiny"))
    assert {mixer.window for mixer in causal.output.attentions()} == {(3, None)}
    assert {mixer.window for mixer in full.output.attentions()} == {(3, 3)}


def test_a_norm_behind_the_last_layer_follows_the_placement() -> None:
    """A stream that is normed itself needs none; any other has one."""
    post = swapped(preset("llama:tiny"), "placement", "post", 16)
    assert post.output.norm is None
    assert swapped(post, "placement", "pre", 16).output.norm is not None


def test_experts_take_the_work_of_the_feed_forward() -> None:
    """What a token meets of a fresh mixture is as wide as the feed-forward was; one expert is that feed-forward."""
    dense = preset("llama:tiny")
    mixed = swapped(dense, "experts", 4, 16)
    mixer: Any = mixed.output.pattern[0].branches[1].mixer
    assert mixer.experts == 4 and mixer.hidden * mixer.top_k == 352
    assert swapped(mixed, "experts", 1, 16) == dense
    chosen: Any = swapped(mixed, "top_k", 3, 16).output.pattern[0].branches[1].mixer
    assert chosen.top_k == 3


def test_heads_keep_their_width_together_and_their_groups() -> None:
    """llama:tiny has four heads of 32, two to a key/value head; eight of them are half as wide."""
    mixer = next(swapped(preset("llama:tiny"), "heads", 8, 16).output.attentions())
    assert (mixer.heads, mixer.kv_heads, mixer.head_dim) == (8, 4, 16)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("position", "rotari", "there is no 'rotari' here; there are rotary, alibi"),
        ("kv_heads", 3, "kv_heads=3 does not divide heads=4"),
        ("heads", 3, "do not make 3 heads"),
        ("heads", "many", "'many' is no number"),
        ("depth", 0, "0 is no number"),
        ("depth", True, "True is no number"),
        ("window", -4, "-4 is no number"),
        ("placement", "before", "there are pre, post, output, both"),
        ("top_k", 2, ""),
    ],
)
def test_what_makes_no_model_is_refused(name: str, value: Any, says: str) -> None:
    """One sentence names the part and the value; what a model lacks is left as it is."""
    spec = preset("llama:tiny")
    if not says:
        assert swapped(spec, name, value, 16) == spec
        return
    with pytest.raises(ExperimentError, match=says):
        swapped(spec, name, value, 16)
