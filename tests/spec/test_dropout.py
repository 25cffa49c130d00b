"""Dropout set by one number."""

from __future__ import annotations

import json
from typing import Any

from anyformer import families, spec
from anyformer.families.difference import differences
from anyformer.spec.dropout import with_dropout


def rates(model: spec.Transformer) -> set[float]:
    """All rates of dropout in a spec."""
    found: set[float] = set()

    def note(part: dict[str, Any]) -> dict[str, Any]:
        found.update(value for key, value in part.items() if key == "dropout")
        return part

    json.loads(model.to_json(), object_hook=note)
    return found


def test_embeddings_and_branches_drop_out_in_a_model_that_had_none() -> None:
    """LLaMA's layers get it, its attention weights and hidden units do not, and nothing else changes."""
    plain = families.llama("tiny")
    found = differences(plain, with_dropout(plain, 0.2))
    paths = ("decoder.pattern.0.branches.0.dropout", "decoder.pattern.0.branches.1.dropout")
    assert [(each.path, each.first, each.second) for each in found] == [
        *((path, 0.0, 0.2) for path in paths),
        ("decoder.embeddings.dropout", 0.0, 0.2),
    ]
    assert differences(plain, with_dropout(plain, 0.2), guidance=False) == []


def test_what_drops_out_by_now_follows() -> None:
    """T5's hidden units and final states, BERT's attention weights; 0 turns all of it off."""
    t5 = differences(families.t5("tiny"), with_dropout(families.t5("tiny"), 0.3))
    assert {"encoder.dropout", "decoder.dropout", "decoder.pattern.0.branches.2.mixer.dropout"} <= {p.path for p in t5}
    for preset in (families.t5("tiny"), families.bert("tiny"), families.gpt2("tiny")):
        assert 0.1 in rates(preset)
        assert rates(with_dropout(preset, 0.3)) <= {0.0, 0.3}
        assert rates(with_dropout(preset, 0.0)) == {0.0}


def test_attention_weights_drop_out_where_asked() -> None:
    """A rate of their own, in every kind of attention, latent too; without one for the rest, that stays as it is."""
    for preset in (families.llama("tiny"), families.t5("tiny"), families.deepseek_v3("tiny")):
        found = differences(preset, with_dropout(preset, None, 0.4))
        assert found and all(each.path.endswith("mixer.dropout") and each.second == 0.4 for each in found)
        stacks = preset.stacks().values()
        attentions = sum(
            branch.name.endswith("attention")
            for stack in stacks
            for block in stack.pattern
            for branch in block.branches
        )
        assert len(found) == attentions
    kept = with_dropout(families.bert("tiny"), 0.3, 0.0)
    attention = kept.encoder.pattern[0].branches[0]
    assert attention.dropout == 0.3 and attention.mixer.dropout == 0.0


def test_nothing_asked_changes_nothing() -> None:
    """A spec as it was."""
    preset = families.bert("tiny")
    assert with_dropout(preset, None) == preset
