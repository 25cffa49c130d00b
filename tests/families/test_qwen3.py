"""Which layers of Qwen3 have a window and which have experts: from every form of its config, as in the reference."""

from __future__ import annotations

from typing import Any

import odd
import pytest

from anyformer.errors import SpecError
from anyformer.families import Family, named

pytest.importorskip("transformers")

QWEN3, MOE = named("qwen3"), named("qwen3_moe")


@pytest.mark.parametrize("first", [0, 1, 3, 4, 9])
def test_windows_from_a_layer_on(first: int) -> None:
    """Before `layer_types`, layers from `max_window_layers` on had the window; the reference spells out the same."""
    form = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": first}
    spec = QWEN3("tiny", **form)
    theirs = odd.reference().AutoConfig.for_model("qwen3", **{**QWEN3.presets["tiny"], **form})
    assert QWEN3.express(spec)["layer_types"] == theirs.layer_types
    assert QWEN3.parse(theirs.to_dict())[0] == spec


@pytest.mark.parametrize("form", [{}, {"decoder_sparse_step": 2}, {"decoder_sparse_step": 3, "mlp_only_layers": [5]}])
def test_layers_with_experts(form: dict[str, Any]) -> None:
    """Every `decoder_sparse_step`-th layer but `mlp_only_layers` has experts, and what is written says the same."""
    said = {**MOE.presets["tiny"], "num_hidden_layers": 7, **form}
    spec, _ = MOE.parse(said)
    transformers = odd.reference()
    model = transformers.Qwen3MoeModel(transformers.Qwen3MoeConfig(**said))
    assert spec.decoder is not None
    sparse = ["experts" in {branch.name for branch in block.branches} for block in spec.decoder.layers()]
    assert sparse == [hasattr(layer.mlp, "experts") for layer in model.layers]
    assert MOE.parse(MOE.express(spec))[0] == spec


@pytest.mark.parametrize(
    ("family", "form", "attribute"),
    [
        (QWEN3, {"layer_types": ["sliding_attention"] * 2}, "layer_types"),
        (MOE, {"use_sliding_window": True, "max_window_layers": 1}, "max_window_layers"),
        (MOE, {"mlp_only_layers": [7]}, "mlp_only_layers"),
        (MOE, {"mlp_only_layers": [1], "num_hidden_layers": 10**12}, "mlp_only_layers"),
        (MOE, {"decoder_sparse_step": 9}, "decoder_sparse_step"),
    ],
)
def test_what_makes_no_sense_is_refused(family: Family, form: dict[str, Any], attribute: str) -> None:
    """A window that is asked for and not given, layers that do not exist, no layer with experts: refused by name."""
    with pytest.raises(SpecError, match=attribute):
        family("tiny", **form)
