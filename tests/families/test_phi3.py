"""What only Phi-3 has: LongRoPE that is crossed while text is written, and names of published files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import odd
import pytest
import torch

import anyformer as af
from anyformer import families
from anyformer.errors import SpecError
from anyformer.spec import Attention, LongRopeScaling, Rotary, Transformer

pytest.importorskip("transformers")

#: Heads of 16 channels, 12 of which turn; divisors change at 24 tokens.
LONGROPE: dict[str, Any] = {
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 24,
    "max_position_embeddings": 512,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0],
        "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
    },
}


def attention_of(spec: Transformer) -> Attention:
    assert spec.decoder is not None
    mixer = spec.decoder.pattern[0].branches[0].mixer
    assert isinstance(mixer, Attention)
    return mixer


@pytest.mark.parametrize("window", [None, 9])
@torch.no_grad()
def test_crossing_the_original_context(window: int | None, tmp_path: Path) -> None:
    """Written token by token across the original context, with a window and without, our cache gives transformers'
    logits without its cache at every step."""
    spec = families.named("phi3")("tiny", **LONGROPE, sliding_window=window)
    theirs = odd.reference_model(families.named("phi3"), spec, "Phi3ForCausalLM", seed=0)
    theirs.save_pretrained(tmp_path)
    ours = af.load(tmp_path, device="cpu")
    assert ours.spec == spec
    ids = torch.randint(512, (2, 40), generator=torch.Generator().manual_seed(0))
    cache = ours.new_cache(2)
    found = [ours(ids[:, :17], cache=cache).logits[:, -1]]
    found += [ours(ids[:, step : step + 1], cache=cache).logits[:, -1] for step in range(17, 40)]
    wanted = [theirs(ids[:, :length], use_cache=False).logits[:, -1] for length in range(17, 41)]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_older_files() -> None:
    """`su` is LongRoPE's first name; the newest form says the same as the oldest."""
    family = families.named("phi3")
    oldest = {**LONGROPE, "rope_scaling": {**LONGROPE["rope_scaling"], "type": "su"}}
    newest = {
        **{name: value for name, value in LONGROPE.items() if name not in ("rope_scaling", "partial_rotary_factor")},
        "rope_parameters": {
            **LONGROPE["rope_scaling"],
            "rope_type": "longrope",
            "type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 24,
        },
    }
    assert family("tiny", **oldest) == family("tiny", **newest) == family("tiny", **LONGROPE)
    position = attention_of(family("tiny", **LONGROPE)).position
    assert isinstance(position, Rotary) and position.dim == 12
    assert isinstance(position.scaling, LongRopeScaling) and position.scaling.factor == 512 / 24


def test_other_scalings_are_refused() -> None:
    """As the reference refuses them, by the name of the attribute."""
    with pytest.raises(SpecError, match=r"rope_type of rope_scaling .* must be 'default' or 'longrope'"):
        families.named("phi3")("tiny", rope_scaling={"type": "linear", "factor": 2.0})


def test_published_sizes() -> None:
    """Parameters as the published files hold them."""
    from anyformer.planning import count

    counts = {"mini-4k": 3821079552, "3.5-mini": 3821079552, "medium-4k": 13960238080, "phi-4": 14659507200}
    assert {size: count(families.named("phi3")(size)) for size in counts} == counts
