"""Differences between specs: exact, by path."""

from __future__ import annotations

from anyformer import families
from anyformer.families.difference import differences
from anyformer.spec import Alibi, Transformer


def changed(spec: Transformer, path: str, value: object) -> Transformer:
    data = spec.model_dump()
    *steps, last = path.split(".")
    inner = data
    for step in steps:
        inner = inner[int(step)] if step.isdigit() else inner[step]
    inner[last] = value
    return Transformer.from_data(data)


def test_equal_specs_do_not_differ() -> None:
    """Nothing to tell of two equal specs."""
    assert differences(families.llama("135m"), families.llama("135m")) == []


def test_the_path_of_a_difference() -> None:
    """The one field that differs, with both of its values, in words too."""
    first = families.llama("tiny")
    (found,) = differences(first, changed(first, "decoder.pattern.0.branches.1.mixer.hidden", 99))
    assert found == ("decoder.pattern.0.branches.1.mixer.hidden", 352, 99)
    assert str(found) == "decoder.pattern.0.branches.1.mixer.hidden (352, not 99)"


def test_parts_of_different_kinds() -> None:
    """Where the kinds differ there is one difference, not one per field."""
    first = families.llama("tiny")
    alibi = Alibi().model_dump()
    (found,) = differences(first, changed(first, "decoder.pattern.0.branches.0.mixer.position", alibi))
    assert found.path.endswith("mixer.position") and str(found).endswith("(a Rotary, not a Alibi)")


def test_patterns_of_different_lengths() -> None:
    """Sequences of different lengths differ as a whole."""
    first = families.llama("tiny")
    assert first.decoder is not None
    pattern = first.decoder.pattern
    second = first.replace(decoder=first.decoder.replace(pattern=(pattern[0], pattern[0])))
    assert [found.path for found in differences(first, second)] == ["decoder.pattern"]


def test_guidance_can_be_left_out() -> None:
    """What guides training and planning changes nothing in what is computed."""
    first = families.llama("tiny")
    second = changed(changed(first, "initialization.std", 0.5), "context", 99)
    second = changed(second, "decoder.pattern.0.branches.0.dropout", 0.5)
    assert len(differences(first, second)) == 3
    assert differences(first, second, guidance=False) == []
