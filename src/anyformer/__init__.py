"""anyformer: every Transformer from one set of parts.

    model = af.load("path-or-file.gguf")          a model, its tokenizer and its generation defaults
    model = af.build(af.families.llama("135m"))   fresh weights from a family's preset, or from any spec
    model.generate(["Once upon"])                 texts in, texts out
    af.plan("llama:8b", device="h100")            what it costs to train and to serve, and whether it fits
    af.train("recipe.toml")                       a run directory, which `load` reads
    with af.trace(model, "**.weights") as t: ...  what passes through a model while it runs

Names are imported when first used, so that nothing waits for torch that does not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Transformer": "anyformer.model",
    "build": "anyformer.model",
    "compare": "anyformer.comparing",
    "load": "anyformer.model",
    "plan": "anyformer.planning",
    "sweep": "anyformer.comparing",
    "train": "anyformer.training",
    "trace": "anyformer.inspection",
    "verify": "anyformer.inspection",
}
_ROOMS = (
    "errors",
    "spec",
    "families",
    "planning",
    "laws",
    "machine",
    "parts",
    "text",
    "checkpoints",
    "generation",
    "model",
    "data",
    "training",
    "inspection",
    "comparing",
)

if TYPE_CHECKING:
    from anyformer import families as families
    from anyformer import spec as spec
    from anyformer.comparing import compare as compare
    from anyformer.comparing import sweep as sweep
    from anyformer.inspection import trace as trace
    from anyformer.inspection import verify as verify
    from anyformer.model import Transformer as Transformer
    from anyformer.model import build as build
    from anyformer.model import load as load
    from anyformer.planning import plan as plan
    from anyformer.training import train as train

__all__ = ["Transformer", "build", "compare", "families", "load", "plan", "spec", "sweep", "trace", "train", "verify"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"anyformer.{name}")
    raise AttributeError(f"module 'anyformer' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
