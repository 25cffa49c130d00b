"""anyformer list shows what there is, read off the code itself."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from anyformer import families, planning
from anyformer.parts.kernels import KERNELS


def listed(anyformer: Callable, what: str) -> list[dict]:
    return json.loads(anyformer("list", what, "--json").out)[what]


def test_families_and_presets_are_those_registered(anyformer: Callable) -> None:
    """Every family stands there with its sizes, every preset with its parameters."""
    found = {row["family"]: row["sizes"] for row in listed(anyformer, "families")}
    assert found == {name: list(family.presets) for name, family in families.registered().items()}
    sizes = {row["preset"]: row["parameters"] for row in listed(anyformer, "presets")}
    assert sizes["llama:135m"] == planning.count(families.preset("llama:135m"))  # type: ignore[arg-type]
    assert len(sizes) == sum(map(len, found.values()))


def test_parts_explain_themselves(anyformer: Callable) -> None:
    """Mixers, positions and heads stand there with a sentence each, and what a norm or an activation may be."""
    rows = listed(anyformer, "parts")
    what_it_is = {row["name"]: row["what it is"] for row in rows if isinstance(row["name"], str)}
    assert {"attention", "feed_forward", "mixture_of_experts", "rotary", "alibi", "learned"} <= what_it_is.keys()
    assert what_it_is["alibi"].startswith("Attention with linear biases (Press et al. 2022)")
    assert all(what_it_is.values())
    assert ["layer", "rms"] in [row["name"] for row in rows]


def test_kernels_say_what_they_can_do_here(anyformer: Callable) -> None:
    """Every kernel answers for itself: the reference can do all, sdpa says it lacks sinks, banded needs a window."""
    rows = {row["kernel"]: row for row in listed(anyformer, "kernels")}
    assert rows.keys() == KERNELS.keys()
    assert rows["reference"]["cannot"] == {} and len(rows["reference"]["can"]) == 8
    assert rows["sdpa"]["cannot"]["sinks"] == "it has no sinks"
    assert "window" in rows["banded"]["can"] and "causal" in rows["banded"]["cannot"]


@pytest.mark.parametrize("arguments", [(), ("families",), ("presets",), ("parts",), ("kernels",)])
def test_tables(arguments: tuple[str, ...], anyformer: Callable) -> None:
    """Each list prints as a table under its name."""
    ran = anyformer("list", *arguments)
    assert ran.code == 0
    for name in arguments or ("families", "presets", "parts"):
        assert f"{name}\n" in ran.out
