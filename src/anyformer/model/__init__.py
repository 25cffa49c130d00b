"""From a spec to a module: block, stack, transformer; building fresh ones and loading saved ones."""

from anyformer.model.building import build, load
from anyformer.model.transformer import Output, Transformer

__all__ = ["Output", "Transformer", "build", "load"]
